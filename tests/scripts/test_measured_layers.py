"""Cells of measured layers, who wins them, what following a prediction costs, and that it is what mesh compare says."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

import moejax
from scripts.layer_exchanges import hardware_file, layer_exchange, with_exchanges
from scripts.measured_layers import LOADS, MODELS, TOKENS, Cell, LayerCase, LayerSplit, best_engines, read_cells
from scripts.predicted_layers import judge, layer_seconds

INTRA, INTER, HYBRID = LayerSplit(4, 1), LayerSplit(1, 4), LayerSplit(2, 2)
CASE = LayerCase(
    hardware="h200", engine="trtllm", dtype="bfloat16", model="Mixtral 8x7B", load="power_law_1.01", devices=4
)


def cell(intra: float, inter: float, hybrid: float | None = None, *, engine: str = "trtllm", tokens: int = 64) -> Cell:
    seconds = {INTRA: intra, INTER: inter} | ({} if hybrid is None else {HYBRID: hybrid})
    return Cell(case=replace(CASE, engine=engine), tokens=tokens, seconds=seconds)


@pytest.mark.parametrize(
    ("seconds", "winner", "by"),
    [
        ((1.0, 1.02), "equal", 1.02),
        ((1.0, 1.04), "intra", 1.04),
        ((1.0, 1.5), "intra", 1.5),
        ((1.8, 1.2), "inter", 1.5),
        ((1.0, 1.5, 0.5), "hybrid", 2.0),
        ((1.0, 1.5, 0.98), "intra", 1.5),
    ],
)
def test_a_winner_leads_by_more_than_a_tie(seconds: tuple[float, ...], winner: str, by: float) -> None:
    found = cell(*seconds)
    assert found.verdict == (winner, pytest.approx(by))
    assert found.loss(found.winner) == 0


def test_a_loss_is_against_the_fastest_split() -> None:
    assert cell(2.0, 3.0, 1.0).loss(INTER) == pytest.approx(2.0)
    assert cell(2.0, 3.0).inter_over_intra == 1.5


def test_the_best_engine_is_chosen_for_each_split() -> None:
    (best,) = best_engines([cell(1.0, 4.0, engine="vllm"), cell(2.0, 3.0, 5.0, engine="trtllm")])
    assert best.seconds == {INTRA: 1.0, INTER: 3.0, HYBRID: 5.0} and best.case.engine == "best"


def test_cells_without_both_pure_splits_are_left_out(tmp_path: Path) -> None:
    head = ["hardware", "engine", "dtype", "model", "tensor", "expert", "load", *map(str, TOKENS)]
    rest = [""] * (len(TOKENS) - 2)
    same = ["h200", "trtllm", "bfloat16", "Mixtral 8x7B"]
    rows = [head, [*same, "4", "1", "balanced", "10", "20", *rest], [*same, "1", "4", "balanced", "30", "", *rest]]
    path = tmp_path / "layers.csv.gz"
    path.write_bytes(gzip.compress("\n".join(map(",".join, rows)).encode()))
    (found,) = read_cells(path)
    assert found.tokens == TOKENS[0] and found.case.load == "balanced"
    assert found.seconds == {INTRA: pytest.approx(10e-6), INTER: pytest.approx(30e-6)}


@pytest.mark.parametrize("software", ["trtllm", "moejax", "ideal"])
@pytest.mark.parametrize("split", [INTER, HYBRID])
def test_layers_differ_as_mesh_compare_says(software: str, split: LayerSplit) -> None:
    """Everything else of a decode step is the same, so steps differ by 32 times what layers do."""
    rows = moejax.compare_meshes(
        "mixtral-8x7b",
        CASE.devices,
        CASE.hardware,
        batch_size=1,
        dispatch="replicated",
        software=software,
        skew=LOADS[CASE.load],
    )
    steps = {
        LayerSplit(row.split.mesh.tensor, row.split.mesh.expert): row.decode.seconds
        for row in rows
        if row.decode is not None
    }
    layers = {one: layer_seconds(CASE, one, 1, software) for one in (INTRA, split)}
    assert layers[split] != layers[INTRA]
    assert steps[split] - steps[INTRA] == pytest.approx(32 * (layers[split] - layers[INTRA]), rel=1e-6)


def test_an_adviser_is_right_within_a_tie_and_its_losses_are_counted() -> None:
    cells = [cell(1.0, 2.0), cell(1.02, 1.0), cell(1.5, 1.0), cell(3.0, 1.0)]
    always = judge(cells, "intra")
    assert (always.cells, always.right) == (4, 0.5)
    assert [one.apart for one in cells] == [True, False, True, True]
    assert [one.slower_by for one in cells[:3]] == pytest.approx([1.0, 0.02, 0.5])
    assert always.losses == pytest.approx([0.5, 2.0]) and always.median_loss == pytest.approx(1.25)
    assert (
        always.worst is cells[3]
        and always.rare == pytest.approx(0.5 + 0.97 * 1.5)
        and always.ranked == pytest.approx(1 / 3)
    )  # the second pair is within a tenth
    assert judge(cells, "inter").ranked == pytest.approx(2 / 3)


def test_equal_predictions_have_no_order() -> None:
    """At 32 tokens a roofline reads every expert, whole or in parts, in the same time."""
    whole, parts = (layer_seconds(CASE, split, 32, "ideal") for split in (INTER, INTRA))
    assert whole == parts
    roofline = judge([cell(1.0, 2.0, tokens=32)], "ideal")
    assert roofline.ranked == 0.0 and roofline.right == 1.0  # of equal ones tensor is named


def test_a_roofline_of_many_tokens_multiplies() -> None:
    config, hardware, tokens = MODELS[CASE.model], hardware_file(CASE.hardware), 16384
    flops = 2 * 3 * tokens * config.experts_per_token * config.embed_dim * config.expert_dim
    taken = layer_seconds(replace(CASE, load="balanced"), INTRA, tokens, "ideal")
    assert taken == pytest.approx(flops / 4 / hardware.matrix_rate["bfloat16"])


def test_the_engine_that_was_measured_is_the_one_that_is_asked() -> None:
    named = {one: layer_seconds(CASE, one, 4096, "trtllm") for one in (INTRA, INTER)}
    right = Cell(case=CASE, tokens=4096, seconds=named)
    assert judge([right], "engine").right == judge([right], "engine").ranked == 1.0
    wrong = Cell(case=CASE, tokens=4096, seconds={INTRA: named[INTER], INTER: named[INTRA]})
    assert judge([wrong], "engine").right == judge([wrong], "engine").ranked == 0.0


def test_a_benchmark_finds_in_the_cache_what_fits_it() -> None:
    eighths = replace(CASE, devices=8, engine="vllm")
    split = eighths.intra
    resident, streamed = (layer_seconds(eighths, split, 1, "vllm", resident=one) for one in (True, False))
    assert resident == streamed  # two eighths of experts, 88 MB, are more than the cache of 50 MB
    eighths = replace(eighths, model="Qwen3-30B-A3B")
    resident, streamed = (layer_seconds(eighths, split, 1, "vllm", resident=one) for one in (True, False))
    assert resident < streamed


def test_every_split_ends_with_its_engines_all_reduce() -> None:
    bytes_ = 64 * MODELS["Mixtral 8x7B"].embed_dim * 2
    taken = hardware_file("h200").collective_seconds("trtllm", "all-reduce", 4, bytes_)
    assert taken is not None
    (summed,) = with_exchanges([cell(1.0, 2.0, 3.0)])
    assert summed.seconds == {
        split: pytest.approx(alone + taken) for split, alone in cell(1.0, 2.0, 3.0).seconds.items()
    }


def test_gather_fills_the_batch_up_and_goes_by_nccl() -> None:
    gathered = [layer_exchange(CASE, INTER, tokens, "gather") for tokens in (1, 4, 4096)]
    assert gathered[0] == gathered[1] < gathered[2]
    size = 4 * MODELS["Mixtral 8x7B"].embed_dim * 2
    parts = [
        hardware_file("h200").collective_seconds("nccl", kind, 4, size) for kind in ("all-gather", "reduce-scatter")
    ]
    assert None not in parts and gathered[0] == pytest.approx(sum(filter(None, parts)))
