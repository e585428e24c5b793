"""docs/predictions.md is what the scripts make of the files beside it and of the hardware files as they are."""

from dataclasses import replace

import pytest

from moejax.planning.costs import predict_decode
from moejax.planning.hardware_file import load_hardware
from moejax.planning.workload import Workload
from scripts.layer_errors import differing, groups_of, held_out, layer_reason, right_share
from scripts.measured_layers import MIXTRAL, LayerCase, LayerSplit
from scripts.page_text import wrapped
from scripts.predicted_layers import PredictedLayer, off, predicted_layers
from scripts.predicted_steps import (
    INT8,
    Estimate,
    configurations,
    decode_rate,
    digests,
    generation,
    generation_rate,
    setting,
    with_int8,
)
from scripts.predictions_data import read
from scripts.predictions_page import PAGE, page, verdicts
from scripts.step_tables import step_reason

LAYER = PredictedLayer(
    case=LayerCase(hardware="h200", engine="vllm", dtype="bfloat16", model=MIXTRAL, load="balanced", devices=4),
    split=LayerSplit(tensor=4),
    tokens=64,
    seconds=1.0,
    predicted=1.2,
    untuned=False,
    of_cache=4.0,
)
STEP = Estimate(
    hardware="h200",
    software="vllm",
    split=LayerSplit(tensor=2, expert=4),
    batch=8,
    phase="decode",
    other=10.0,
    fitted=8.0,
    measured=9.5,
    experts=-1.4,
    untuned=True,
    calls=1,
)


def test_the_page_is_what_the_script_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m scripts.predictions_page"


def test_what_was_measured_is_of_these_hardware_files() -> None:
    measured = read("measured")
    used = {row["hardware"] for row in configurations()}
    assert measured["hardware"] == digests(used), "python -m scripts.predicted_steps"
    assert len(measured["rows"]) == len(configurations())


def test_the_report_of_the_fit_is_of_these_hardware_files() -> None:
    compared = 0
    for (hardware, software, dtype), layers in groups_of(held_out()).items():
        reported = read("fit_errors")[hardware][software][dtype]["other shape"]
        _, middle, _ = off(layers)
        assert middle == pytest.approx(reported["median"], abs=0.005), "python -m scripts.fit_hardware --report"
        compared += 1
    assert compared > 20


def test_bars_that_are_met_stay_met() -> None:
    met = [one.what for one in verdicts() if one.met]
    for what in ("gpt-fast's seven", "predicted more than 5% apart"):
        assert any(what in one for one in met), what
    assert any("decode steps" in one and "measured" in one for one in met)


def test_layers_of_a_model_that_nothing_was_fitted_to_are_near() -> None:
    """What the fit promises, on the committed extract."""
    count, middle, within = off(held_out())
    assert count > 18_000 and middle <= 0.10 and within >= 0.90


def test_of_two_splits_that_differ_the_faster_is_named() -> None:
    assert len(differing()) > 8_000
    assert right_share(differing()) >= 0.95 and right_share(differing(), resident=False) >= 0.95


def test_layers_are_as_the_tables_have_them() -> None:
    whole = [
        layer.seconds
        for layer in predicted_layers()
        if (layer.case.hardware, layer.case.model, layer.case.load) == ("h200", MIXTRAL, "balanced")
        and (layer.case.dtype, layer.split, layer.tokens) == ("bfloat16", LayerSplit(), 8)
    ]
    assert len(whole) == 3 and min(whole) == pytest.approx(0.653e-3, rel=2e-3)  # 90% of what the bandwidth allows


def test_errors_of_layers() -> None:
    layers = [replace(LAYER, predicted=predicted) for predicted in (0.7, 1.0, 1.1, 1.25)]
    count, middle, within = off(layers)
    assert (count, middle, within) == (4, pytest.approx(0.175), 0.75)


def test_what_layers_have_in_common_is_their_reason() -> None:
    untuned, cached = replace(LAYER, untuned=True), replace(LAYER, of_cache=0.9)
    assert "2 vLLM has no tuned" in layer_reason([untuned, untuned, cached], "vLLM")
    assert "in 2 the weights" in layer_reason([untuned, cached, cached], "vLLM")
    assert "no single cause" in layer_reason([LAYER, LAYER, cached], "vLLM")
    assert "2 were predicted too long" in layer_reason([LAYER, LAYER, replace(LAYER, predicted=0.5)], "vLLM")


def test_the_part_that_is_off_most_is_the_reason() -> None:
    assert step_reason(STEP, "fitted") == "2 experts of 7,168 columns, not tuned: longer"
    assert step_reason(replace(STEP, experts=1.4, untuned=False, fitted=11.0), "fitted").endswith("columns: less")
    assert step_reason(replace(STEP, experts=0.1), "fitted") == "attention"
    products = replace(STEP, measured=8.0, experts=0.1)
    assert "collectives" in step_reason(products, "fitted") and "collectives" in step_reason(STEP, "measured")
    assert "8,192 tokens" in step_reason(replace(products, calls=4), "fitted")


def test_a_generation_is_a_prefill_and_steps() -> None:
    given = setting(load_hardware("a100-80gb"), "vllm", LayerSplit(tensor=2))
    found = generation(given, 1, 5, 200)
    assert found.total == pytest.approx(found.prefill + 199 * found.step)
    published = read("published")["gpt-fast"]
    assert generation_rate(published, "vllm", "bfloat16", 2) == pytest.approx(200 / found.total)


def test_steps_alone_leave_the_prefill_out() -> None:
    published = read("published")["tensorrt-llm"]
    given = setting(load_hardware("a100-80gb"), "trtllm", LayerSplit())
    assert decode_rate(published, "trtllm") == pytest.approx(1 / generation(given, 1, 512, 128, "int8").step)


def test_int8_halves_the_weights_and_nothing_else() -> None:
    given = setting(load_hardware("a100-80gb"), "sglang", LayerSplit(tensor=8))
    work = Workload(batch_size=1, input_len=5, context=105)
    usual = predict_decode(given, work)
    halved = predict_decode(replace(given, hardware=with_int8(given.hardware)), replace(work, dtype=INT8))
    assert halved.weight_bytes == usual.weight_bytes / 2 and halved.flops == usual.flops
    assert halved.overhead_seconds == usual.overhead_seconds
    saved = generation(given, 1, 104, 2).step - generation(given, 1, 104, 2, "int8").step
    assert saved == pytest.approx(usual.weights_seconds / 2, rel=0.05)  # a little is read beside the weights


def test_text_is_wrapped_and_tables_are_not() -> None:
    row = "| " + "cell | " * 40
    text = f"# Title\n\n{'word ' * 50}\n\n{row}\n{row}\n\n- {'point ' * 40}\n- next\n\n```console\n$ {'a ' * 80}\n```\n"
    found = wrapped(text).splitlines()
    assert found.count(row) == 2 and "- next" in found and f"$ {'a ' * 80}" in found and "# Title" in found
    assert max(len(line) for line in found if line.startswith(("word", "- ", "  "))) <= 120
    assert any(line.startswith("  point") for line in found)
