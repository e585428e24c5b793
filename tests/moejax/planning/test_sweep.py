"""Several numbers of devices: the fewest that will do, which gives most on each, and how to serve it."""

import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from typer.main import get_command

from moejax import MeshRow, compare_meshes
from moejax.checkpoint import open_checkpoint
from moejax.cli.app import app
from moejax.cli.serve import EngineFlags
from moejax.moe.split import DISPATCHES, resolve_split
from moejax.planning import pareto_plot
from moejax.planning.compare import make_plan
from moejax.planning.export import comparison_json
from moejax.planning.hardware_file import load_hardware
from moejax.planning.pareto import frontier, frontiers, kind
from moejax.planning.question import Question
from moejax.planning.serve_command import serve_command, served_checkpoint
from moejax.planning.sweep import MOST_COUNTS, answer, counts_without, device_counts, first_of_each_count
from tests.messages import refuses

COUNTS = [1, 2, 3, 4, 8]


@pytest.fixture(scope="module")
def swept() -> list[MeshRow]:
    return compare_meshes("mixtral-8x7b", COUNTS, "h100-sxm", batch_size=[1, 32], ttft=0.2, tpot=0.01, software="ideal")


def of_batch(rows: list[MeshRow], batch: int) -> list[MeshRow]:
    return [row for row in rows if row.batch_size == batch]


def test_several_numbers_are_the_comparisons_of_each(swept: list[MeshRow]) -> None:
    apart = [
        row
        for count in COUNTS
        for row in compare_meshes(
            "mixtral-8x7b", count, "h100-sxm", batch_size=[1, 32], ttft=0.2, tpot=0.01, software="ideal"
        )
    ]
    assert [(row.devices, row.batch_size, row.split) for row in swept] == [
        (row.split.mesh.size, row.batch_size, row.split) for row in apart
    ]
    assert [row.tpot_seconds for row in swept] == [row.tpot_seconds for row in apart]
    assert [row.best_for for row in swept] == [row.best_for for row in apart]


def test_numbers_of_devices_are_each_compared_once_from_the_fewest() -> None:
    assert device_counts(8) == [8]
    assert device_counts([8, 1, 8, 2]) == [1, 2, 8]
    assert device_counts(range(3, 6)) == [3, 4, 5]
    for wrong, got in ((0, "0"), (True, "True"), ([4, 0], "0"), ("8", "'8'"), (2.5, "2.5")):
        with refuses(ValueError, "devices", "1", f"got {got}"):
            device_counts(wrong)  # type: ignore[arg-type]
    with refuses(ValueError, "devices", "no number"):
        device_counts([])
    with refuses(ValueError, "devices", MOST_COUNTS, f"got {MOST_COUNTS + 1}"):
        device_counts(range(1, MOST_COUNTS + 2))


@pytest.mark.parametrize("batch", [1, 32])
def test_the_fewest_are_the_first_number_on_which_something_meets(swept: list[MeshRow], batch: int) -> None:
    rows = of_batch(swept, batch)
    found = answer(rows)
    meeting = [row for row in rows if row.meets_targets]
    assert found.fewest and found.most and found.nearest is None
    assert found.fewest.devices == min(row.devices for row in meeting) == {1: 2, 32: 4}[batch]
    beside = [row.tpot_seconds for row in meeting if row.devices == found.fewest.devices]
    assert found.fewest.tpot_seconds == min(beside)
    assert found.most.tokens_per_second_per_device == max(row.tokens_per_second_per_device for row in meeting)
    assert found.most.tokens_per_second_per_device == pytest.approx(
        batch / found.most.tpot_seconds / found.most.devices
    )


def test_over_all_batch_sizes_few_devices_and_much_of_each_differ(swept: list[MeshRow]) -> None:
    found = answer(swept)
    assert found.fewest and (found.fewest.devices, found.fewest.batch_size) == (2, 1)
    assert found.most and (found.most.devices, found.most.batch_size) == (4, 32)


def test_where_nothing_meets_the_nearest_is_told() -> None:
    rows = compare_meshes(
        "mixtral-8x7b", [2, 8], "h100-sxm", batch_size=[8, 32], ttft=0.01, tpot=0.001, software="ideal"
    )
    found = answer(rows)
    assert found.fewest is None and found.most is None and found.nearest
    assert found.nearest.times_target == min(row.times_target for row in rows if row.fits and row.built) > 1
    assert (found.nearest.devices, found.nearest.batch_size) == (8, 8)


def test_without_targets_whatever_fits_will_do() -> None:
    rows = compare_meshes("mixtral-8x7b", [1, 2, 4], "h100-sxm", batch_size=8, software="ideal")
    found = answer(rows)
    assert found.fewest and found.fewest.devices == 2  # it does not fit on one
    assert found.nearest is None
    nothing = answer(compare_meshes("mixtral-8x7b", 1, "h100-sxm", batch_size=8, software="ideal"))
    assert (nothing.fewest, nothing.most, nothing.nearest) == (None, None, None)


def test_each_number_has_its_best_split(swept: list[MeshRow]) -> None:
    rows = of_batch(swept, 32)
    found = first_of_each_count(rows, "latency")
    assert [row.devices for row in found] == [2, 3, 4, 8]
    for row in found:
        same = [one for one in rows if one.devices == row.devices and one.fits and one.built]
        if row.meets_targets:
            assert row.tpot_seconds == min(one.tpot_seconds for one in same if one.meets_targets)
        else:
            assert not any(one.meets_targets for one in same)
            assert row.times_target == min(one.times_target for one in same)


def test_numbers_that_leave_copies_idle_are_told_apart() -> None:
    """At batch 2, nine devices are three copies or more: 8 experts and 14,336 hidden do not divide over nine."""
    rows = compare_meshes("mixtral-8x7b", [1, 4, 9, 11], "h100-sxm", batch_size=2, software="ideal")
    assert counts_without(rows) == ([1, 11], [9])
    assert [row.devices for row in first_of_each_count(rows, "latency")] == [4]
    assert {row.idle_copies for row in rows if row.devices == 9 and row.fits} == {1}
    sixteen = compare_meshes("mixtral-8x7b", 16, "h100-sxm", batch_size=1, software="ideal")
    fastest = min((row for row in sixteen if row.fits and row.built), key=lambda row: row.tpot_seconds)
    assert fastest.idle_copies == 1 and not sixteen[0].idle_copies and "latency" in sixteen[0].best_for
    assert first_of_each_count(sixteen, "latency") == [answer(sixteen).most]
    strict = compare_meshes("mixtral-8x7b", 16, "h100-sxm", batch_size=1, tpot=fastest.tpot_seconds, software="ideal")
    found = answer(strict)
    assert found.most and found.most.idle_copies == 1 and found.nearest is None  # nothing else meets it
    more = compare_meshes("mixtral-8x7b", 9, "h100-sxm", batch_size=4, software="ideal")
    assert counts_without(more) == ([], []) and more[0].idle_copies == 0
    assert frontiers(rows, make_plan("mixtral-8x7b", "h100-sxm", software="ideal"))[1].rows[-1].batch_size > 4
    for line in frontiers(rows, make_plan("mixtral-8x7b", "h100-sxm", software="ideal")):
        assert not any(row.idle_copies for row in line.rows)


def asked_on(hardware: str) -> Question:
    return Question(model="mixtral-8x7b", hardware=load_hardware(hardware))


def test_json_has_the_answers(swept: list[MeshRow]) -> None:
    found = comparison_json(swept, asked_on("h100-sxm"), checkpoint="weights of mine")
    assert found["targets"] == {"ttft": 0.2, "tpot": 0.01} and found["meets_targets"] is True
    assert {one["devices"] for one in found["rows"]} == set(COUNTS)
    for one, row in zip(found["rows"], swept, strict=True):
        assert one["meets_targets"] is row.meets_targets and one["misses"] == (row.misses if row.fits else None)
        assert one["tpot_seconds"] == (row.tpot_seconds if row.fits else None)
    fewest = answer(of_batch(swept, 32)).fewest
    assert fewest and found["answers"]["32"]["fewest"]["devices"] == fewest.devices
    assert found["answers"]["32"]["fewest"]["ttft_seconds"] == fewest.ttft_seconds
    assert found["answer"]["most"]["batch_size"] == 32 and found["answer"]["nearest"] is None
    words = serve_command(fewest, "weights of mine")
    assert shlex.split(found["answers"]["32"]["fewest"]["command"]) == words
    assert found["winners"]["32"]["latency"]["devices"] == 8
    plain = comparison_json(compare_meshes("mixtral-8x7b", 4, "h200", batch_size=1), asked_on("h200"))
    assert plain["targets"] == {"ttft": None, "tpot": None} and plain["meets_targets"] is None
    assert plain["rows"][0]["misses"] is None


def test_the_command_is_one_that_serve_accepts() -> None:
    """Its own parser and checks take it, and what they find is the row's split and sizes."""
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    config = open_checkpoint("demo").config
    rows = compare_meshes("demo", [1, 6, 8], "cpu", batch_size=[1, 6], dtype="float32")
    usable = [row for row in rows if row.fits and row.built]
    assert {row.split.dispatch for row in usable} == set(DISPATCHES)
    for row in usable:
        words = serve_command(row, served_checkpoint("demo"))
        assert words and words[:3] == ["moejax", "serve", "demo"]
        given = serve.make_context("serve", words[2:]).params
        assert (given["checkpoint"], given["dtype"]) == ("demo", "float32")
        split = resolve_split(config, given["mesh"], given["dispatch"])
        assert (split.mesh, split.dispatch) == (row.split.mesh, row.split.dispatch)
        engine = EngineFlags(max_batch=given["max_batch"], max_seq_len=given["max_seq_len"])
        assert engine.settings("cpu").max_batch == row.batch_size
        assert engine.max_seq_len == row.workload.context <= config.max_position_embeddings


def test_what_cannot_be_served_has_no_command() -> None:
    rows = compare_meshes("mixtral-8x7b", 4, "h100-sxm", batch_size=[1, 2048], software="ideal")
    for row in rows:
        served = row.fits and row.built and row.batch_size == 1
        assert (serve_command(row, "here") is not None) is served
    bound = compare_meshes("mixtral-8x7b", 4, "h100-sxm", batch_size=1, context=0, software="ideal")[0]
    assert bound.fits and serve_command(bound, "here") is None


def test_only_a_model_that_has_weights_is_served(tmp_path: Path) -> None:
    there = ["demo", "random:742m", str(tmp_path), "org/name", "hf://org/name@v1"]
    assert [served_checkpoint(name) for name in (*there, "mixtral-8x7b", "a/config.json")] == [
        *there,
        *["CHECKPOINT"] * 2,
    ]


def test_a_frontier_has_what_nothing_is_better_than(swept: list[MeshRow]) -> None:
    rows = [row for row in swept if row.fits and row.built]
    found = frontier(rows)
    for one, other in pairwise(found):
        assert one.tokens_per_second_per_request > other.tokens_per_second_per_request
        assert one.tokens_per_second_per_device < other.tokens_per_second_per_device
    for row in rows:
        assert any(
            one.tokens_per_second_per_request >= row.tokens_per_second_per_request
            and one.tokens_per_second_per_device >= row.tokens_per_second_per_device
            for one in found
        )


def test_frontiers_are_of_numbers_of_devices_or_of_kinds_of_split(swept: list[MeshRow]) -> None:
    plan = make_plan("mixtral-8x7b", "h100-sxm", software="ideal")
    lines = frontiers(swept, plan)
    assert [line.name for line in lines] == ["2 devices", "3 devices", "4 devices", "8 devices"]
    for line, count in zip(lines, (2, 3, 4, 8), strict=True):
        assert {row.devices for row in line.rows} == {count}
        assert line.rows[-1].batch_size > 32  # every batch size that fits, not those compared
        assert {row.targets for row in line.rows} == {swept[0].targets}
    one = frontiers([row for row in swept if row.devices == 8], plan)
    for line in one:
        assert {kind(row.split) for row in line.rows} == {line.name}
    assert len(one) == 3
    tensor = next(line for line in one if "intra" in line.name)
    assert all(row.split.mesh.expert == 1 < row.split.mesh.tensor for row in tensor.rows)


@pytest.mark.parametrize("devices", [[1, 2, 4], [8]])
def test_a_picture_is_drawn(tmp_path: Path, swept: list[MeshRow], devices: list[int]) -> None:
    path = tmp_path / "frontiers.svg"
    rows = [row for row in swept if row.devices in devices]
    pareto_plot.draw(rows, make_plan("mixtral-8x7b", "h100-sxm", software="ideal"), "a title", path)
    assert path.stat().st_size > 10_000
    with refuses(ValueError, "no split"):
        nothing = [row for row in swept if row.devices == 1]
        pareto_plot.draw(nothing, make_plan("mixtral-8x7b", "h100-sxm", software="ideal"), "a title", path)
