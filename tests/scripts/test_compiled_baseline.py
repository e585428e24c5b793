import json
from pathlib import Path
from typing import Any

import pytest

from moejax.compiling.tools import EXTRAS, Extra
from scripts.compiled_baseline import PATHS, checked_cases, compare, read_baseline, write_baseline
from tests.messages import refuses, says
from tests.moejax.compiling import recorded
from tests.moejax.compiling.made import CASE, facts


def test_nothing_is_worse_than_itself(tmp_path: Path) -> None:
    found = compare(facts(tmp_path), facts(tmp_path))
    assert (found.worse, found.better) == ((), ())


PLANTED: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "a spill": ({"ptxas": recorded.SPILLS}, ("few_tokens_gate_up spilled", 0, 40)),
    "a loop driven by the host": ({"thunks": recorded.HOST_LOOP}, ("launches.host_loops", 0, 1)),
    "a dropped asynchronous copy": ({"code": recorded.DROPPED}, ("few_tokens_gate_up asynchronous", 2, 1)),
}


@pytest.mark.parametrize(("planted", "said"), PLANTED.values(), ids=PLANTED)
def test_what_is_planted_is_worse_and_its_end_is_better(
    planted: dict[str, Any], said: tuple[Any, ...], tmp_path: Path
) -> None:
    good, bad = facts(tmp_path), facts(tmp_path, **planted)
    (line,) = (line for line in compare(good, bad).worse if said[0] in line)
    says(line, "h200 decode mixtral-8x7b", *said)
    assert any(said[0] in line for line in compare(bad, good).better)
    assert not any(said[0] in line for line in compare(bad, good).worse)


def test_an_exchange_that_overlaps_nothing_any_more_is_worse(tmp_path: Path) -> None:
    good, bad = facts(tmp_path), facts(tmp_path)
    good["launches"]["overlapped"] = 4
    (line,) = compare(good, bad).worse
    says(line, "launches.overlapped", 4, bad["launches"]["overlapped"])


def test_collectives_that_the_closed_forms_do_not_have_are_worse(tmp_path: Path) -> None:
    bad = facts(tmp_path)
    bad["collectives"]["unpredicted"] = ["1 x all-gather over expert of 8 int32 in moe"]
    (line,) = compare(facts(tmp_path), bad).worse
    says(line, "unpredicted", "1 x all-gather over expert of 8 int32 in moe")


def test_a_kernel_in_another_scope_a_new_one_and_no_case_at_all(tmp_path: Path) -> None:
    old, new = facts(tmp_path), facts(tmp_path)
    new["kernels"]["other"] = new["kernels"].pop("few_tokens_gate_up")
    new["launches"]["by_scope"]["moe"] = 2
    found = compare(old, new)
    says(found.worse[0], "kernels in moe", 1, 2)
    says(found.worse[1], "other", "not in the baseline", "--update")
    says(found.better[0], "few_tokens_gate_up", "gone")
    (line,) = compare(None, new).worse
    says(line, "h200 decode", "not in the baseline", "--update")


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    path, found = tmp_path / "baseline.json", json.loads(json.dumps(facts(tmp_path)))
    write_baseline(path, [found])
    assert read_baseline(path) == {CASE: {name: part for name, part in found.items() if name != "seconds"}}
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"wheels": raw["wheels"] | {"jax": "0.0.1"}}))
    with refuses(ValueError, "jax 0.0.1", "--update"):
        read_baseline(path)
    with refuses(ValueError, "no.json", "--update"):
        read_baseline(tmp_path / "no.json")


OF_A_TPU = {
    "operations": {
        "computing": 27,
        "kernels": 4,
        "loops": 0,
        "in_loops": 0,
        "copies": 9,
        "collectives": 7,
        "overlapped": 0,
    },
    "bytes_accessed": 10**9,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"computing": 28}, ("operations.computing", 27, 28)),
        ({"kernels": 0}, ("operations.kernels", 4, 0)),
        ({"loops": 2}, ("operations.loops", 0, 2)),
    ],
)
def test_counts_of_a_tpu_are_compared(change: dict[str, int], said: tuple[Any, ...], tmp_path: Path) -> None:
    good = {name: part for name, part in facts(tmp_path).items() if name not in ("launches", "kernels", "xla_kernels")}
    good |= OF_A_TPU
    bad = good | {"operations": OF_A_TPU["operations"] | change}
    (line,) = compare(good, bad).worse
    says(line, *said)
    assert compare(good, good).worse == () and len(compare(bad, good).better) == 1


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_committed_baselines_have_every_case_of_every_target(extra: Extra) -> None:
    there = read_baseline(Path(__file__).parents[2] / PATHS[extra], extra)
    assert list(there) == checked_cases(extra)
    for facts_ in there.values():
        assert facts_["collectives"]["unpredicted"] == facts_["collectives"]["missing"] == []
