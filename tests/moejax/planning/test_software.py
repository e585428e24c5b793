"""Whose kernels are predicted, what the seconds stand on, and loads that are no tokens choosing."""

import dataclasses

import numpy as np
import pytest

from moejax import MeshRow, compare_meshes
from moejax.planning.compare import make_plan
from moejax.planning.export import comparison_json
from moejax.planning.hardware_file import load_hardware, shipped_hardware
from moejax.planning.loads import Balanced, PowerLaw
from moejax.planning.question import Question
from moejax.planning.routing import RoutingModel
from moejax.planning.software import SOFTWARE, basis, basis_said
from tests.messages import refuses, says

MEASURED = ("a100-80gb", "b200", "h100-sxm", "h200", "l40s", "rtx-pro-6000")


def step(hardware: str, software: str, **options: object) -> MeshRow:
    found = compare_meshes("mixtral-8x7b", 8, hardware, software=software, **{"batch_size": 32} | options)  # type: ignore[arg-type]
    return next(row for row in found if row.label == "tensor=8")


@pytest.mark.parametrize("hardware", MEASURED)
def test_measured_software_takes_longer_than_the_roofline(hardware: str) -> None:
    assert set(load_hardware(hardware).software) == set(SOFTWARE) - {"ideal"}
    bound = step(hardware, "ideal")
    assert bound.decode and bound.prefill
    for software in ("moejax", "vllm", "trtllm", "sglang"):
        row = step(hardware, software)
        assert row.decode and row.prefill
        assert row.decode.seconds > 1.1 * bound.decode.seconds
        assert row.prefill.seconds > 1.1 * bound.prefill.seconds
        assert row.decode.weight_bytes == bound.decode.weight_bytes and row.footprint == bound.footprint


def test_hardware_without_measured_terms_is_a_roofline_and_says_so() -> None:
    for name in set(shipped_hardware()) - set(MEASURED):
        hardware = load_hardware(name)
        assert basis(hardware, "moejax", "float16") == "roofline"
        says(basis_said(hardware, "moejax", "float16"), "roofline", "moejax", "float16")
        same = [
            row.decode.seconds
            for software in ("moejax", "ideal")
            for row in compare_meshes("demo", 2, hardware, dtype="float32", batch_size=2, software=software)
            if row.decode
        ]
        assert same[: len(same) // 2] == same[len(same) // 2 :]
    assert basis(load_hardware("h200"), "vllm", "bfloat16") == "fitted"
    assert basis(load_hardware("h200"), "vllm", "float16") == "fitted"  # as fast as bfloat16
    assert basis(load_hardware("h200"), "moejax", "float32") == "roofline"
    assert basis(load_hardware("h200"), "ideal", "bfloat16") == "roofline"
    calibrated = dataclasses.replace(load_hardware("cpu"), layer_overhead=1e-6)
    assert basis(calibrated, "moejax", "float32") == "calibrated"


def test_names_are_known_in_any_case() -> None:
    given = {"software": "VLLM", "objective": "TTFT", "times": "Fitted", "skew": "Zipf:1.0", "batch_size": 1}
    plain = {name: value.lower() if isinstance(value, str) else value for name, value in given.items()}
    assert compare_meshes("demo", 2, "H200", **given) == compare_meshes("demo", 2, "h200", **plain)  # type: ignore[arg-type]
    plan = make_plan("demo", "H200", software="VLLM", skew="Zipf:1.0")
    assert (plan.hardware.name, plan.software, plan.skew) == ("h200", "vllm", "zipf:1.0")


def test_wrong_software_is_refused() -> None:
    with refuses(ValueError, "'vlm'", *SOFTWARE, "'vllm'"):
        compare_meshes("demo", 1, "h200", software="vlm")
    with refuses(ValueError, "vllm", "v100-32gb", "float16", "a100-80gb", "h200", "ideal"):
        compare_meshes("demo", 1, "v100-32gb", software="vllm", dtype="float16")
    with refuses(ValueError, "vllm", "h200", "float32", "ideal"):
        compare_meshes("demo", 1, "h200", software="vllm", dtype="float32")


def test_attention_reads_what_is_filled_of_a_cache() -> None:
    full, filled = (step("h200", software, context=1030).decode for software in ("vllm", "moejax"))
    longer = step("h200", "moejax", context=2060).decode
    assert full and filled and longer
    assert full.kv_bytes == filled.kv_bytes == pytest.approx(longer.kv_bytes / 2)


def test_json_names_the_software() -> None:
    hardware = load_hardware("h200")
    rows = compare_meshes("demo", 1, hardware, batch_size=1, software="vllm")
    found = comparison_json(rows, Question(model="demo", hardware=hardware, software="vllm"))
    assert found["software"] == {"name": "vllm", "basis": "fitted"}
    assert found["hardware"]["software"]["vllm"].startswith("vLLM ") and "nccl" in found["hardware"]["collectives"]


# --- loads ---


@pytest.mark.parametrize("load", [Balanced(), PowerLaw(1.01), PowerLaw(1.2), PowerLaw(1.0), PowerLaw(0.5)], ids=str)
@pytest.mark.parametrize(
    ("tokens", "chosen", "experts"), [(1, 2, 8), (3, 2, 8), (64, 2, 8), (1, 8, 128), (5000, 8, 128), (40, 10, 512)]
)
def test_every_token_has_its_experts(load: Balanced | PowerLaw, tokens: int, chosen: int, experts: int) -> None:
    rows = load.rows(tokens, chosen, experts)
    assert rows.shape[1] == experts and (rows.sum(axis=1) == tokens * chosen).all()
    assert rows.min() >= 0 and rows.max() <= tokens


def test_a_balanced_load_spreads_tokens() -> None:
    assert Balanced().rows(8, 2, 8).tolist() == [[2] * 8]
    assert Balanced().rows(1, 2, 8).tolist() == [[1, 0, 0, 0, 1, 0, 0, 0]]
    assert np.flatnonzero(Balanced().rows(2, 2, 8)[0]).tolist() == [0, 2, 4, 6]


def test_a_power_law_is_skewed_and_each_time_the_same() -> None:
    rows = PowerLaw(1.01).rows(4096, 2, 8)
    assert (rows == PowerLaw(1.01).rows(4096, 2, 8)).all() and not (
        rows == PowerLaw(1.01, seed=1).rows(4096, 2, 8)
    ).all()
    assert rows.max(axis=1).mean() > 3 * 1024  # of 1,024 on average
    assert len({tuple(one) for one in rows.tolist()}) > len(rows) / 2


def test_the_busiest_device_is_the_one_with_most_rows() -> None:
    routing = RoutingModel(8, 2, load=PowerLaw(1.01))
    rows, whole = routing.busiest(4, 512), routing.busiest(1, 512)
    assert rows.shape == (len(whole), 2)
    assert (rows.sum(axis=1) == whole.reshape(-1, 4, 2).sum(axis=2).max(axis=1)).all()
    assert routing.busiest_rows(4, 512) == pytest.approx(rows.sum(axis=1).mean())
    assert routing.experts_read(4, 512) == pytest.approx((rows > 0).sum(axis=1).mean())
    assert routing.load_imbalance(4) > 1.5
    assert RoutingModel(8, 2, load=Balanced()).load_imbalance(4) == 1


def test_rows_of_tokens_that_choose_are_those_that_are_expected() -> None:
    routing = RoutingModel(6, 2)  # 6 experts on 4 devices: two each, the last has none
    for tokens in (1, 7, 300):
        rows = routing.busiest(4, tokens)
        assert rows.shape[1] == 2
        assert rows.sum(axis=1).mean() == pytest.approx(routing.busiest_rows(4, tokens), rel=0.05)


def test_a_skewed_load_makes_expert_slower_and_leaves_one_device_nearly_as_it_is() -> None:
    even, skewed = (
        {
            row.label: row
            for row in compare_meshes("mixtral-8x7b", 8, "h200", batch_size=64, software="trtllm", skew=skew)
        }
        for skew in ("balanced", "power-law:1.01")
    )
    for label, least, most in (("expert=8 replicated", 1.15, 3.0), ("tensor=8", 0.9, 1.1)):
        before, after = even[label].prefill, skewed[label].prefill
        assert before and after and least < after.seconds / before.seconds < most
    assert skewed["expert=8 replicated"].load_imbalance > 2
    with refuses(ValueError, "skew=balanced", "expert load"):
        compare_meshes("demo", 1, "h200", skew="balanced", expert_load="demo")


# --- what people pass ---


def test_numbers_of_numpy_are_numbers() -> None:
    given = {"batch_size": np.int64(4), "context": np.int64(300), "input_len": np.int32(20), "ttft": np.float32(0.5)}
    found = compare_meshes("demo", np.int64(2), "h200", **given, usable_fraction=np.float32(0.5))  # type: ignore[arg-type]
    plain = compare_meshes("demo", 2, "h200", batch_size=4, context=300, input_len=20, ttft=0.5, usable_fraction=0.5)
    assert [row.decode for row in found] == [row.decode for row in plain]


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"software": None}, ("None", "vllm")),
        ({"software": 3}, ("3", "ideal")),
        ({"skew": None}, ("skew", "uniform", "None")),
        ({"skew": "power-law:1_0"}, ("skew", "'power-law:1_0'")),
        ({"batch_size": None}, ("batch_size", "None")),
        ({"batch_size": 4.0}, ("batch_size", "4.0")),
        ({"batch_size": "4"}, ("batch_size", "'4'")),
        ({"expert_load": 3}, ("expert_load", "3")),
        ({"context": 2.5}, ("context", "2.5")),
        ({"ttft": 10**400}, ("ttft", "seconds")),
        ({"tpot": 5e-324}, ("tpot", "seconds")),
        ({"usable_fraction": True}, ("usable_fraction", "True")),
    ],
    ids=str,
)
def test_what_is_no_number_is_named(options: dict[str, object], facts: tuple[str, ...]) -> None:
    with refuses(ValueError, *facts):
        compare_meshes("demo", 2, "h200", **{"batch_size": 1} | options)  # type: ignore[arg-type]


def test_a_prefill_of_many_calls_is_the_sum_of_them() -> None:
    one, many = (compare_meshes("demo", 1, "h200", batch_size=size, input_len=64)[0].prefill for size in (128, 1024))
    assert one and many and (one.calls, many.calls) == (1, 8)
    assert many.seconds == pytest.approx(8 * one.seconds) and many.flops == pytest.approx(8 * one.flops)
    assert many.experts_read == pytest.approx(one.experts_read)


def test_layers_outside_of_what_was_fitted_are_told() -> None:
    for model, least, most in (("demo", 10, 100), ("mixtral-8x7b", 1, 1)):
        (row,) = compare_meshes(model, 1, "h200", batch_size=1, software="vllm")
        assert row.decode and least <= row.decode.beyond <= most
    (ideal,) = compare_meshes("demo", 1, "h200", batch_size=1, software="ideal")
    assert ideal.decode and ideal.decode.beyond == 1
