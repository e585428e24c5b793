"""Targets: which rows meet them, by how much others miss them, and what that does to the order."""

import math
from dataclasses import replace

import pytest

from moejax import MeshRow, compare_meshes
from moejax.planning.ranking import SAME, best, equally_good, first, score
from moejax.planning.targets import Targets
from tests.messages import refuses, says


@pytest.fixture(scope="module")
def plain() -> list[MeshRow]:
    return compare_meshes("mixtral-8x7b", 8, "h100-sxm", batch_size=8)


def asked(rows: list[MeshRow], **targets: float) -> list[MeshRow]:
    """The same comparison with targets, in its order."""
    return compare_meshes("mixtral-8x7b", 8, "h100-sxm", batch_size=rows[0].batch_size, **targets)  # type: ignore[arg-type]


def test_a_target_is_missed_by_the_seconds_beyond_it() -> None:
    targets = Targets(ttft=0.2, tpot=0.02)
    assert targets.misses({"ttft": 0.2, "tpot": 0.02}) == {}  # both are inclusive
    assert targets.misses({"ttft": 0.1, "tpot": 0.05}) == {"tpot": pytest.approx(0.03)}
    assert targets.misses({"ttft": 0.3, "tpot": 0.05}) == {"ttft": pytest.approx(0.1), "tpot": pytest.approx(0.03)}
    assert Targets(tpot=0.02).misses({"ttft": 9.0, "tpot": 0.01}) == {}
    assert targets.worst({"ttft": 0.3, "tpot": 0.05}) == pytest.approx(2.5)  # the 20 ms, not the 200
    assert targets.worst({"ttft": 0.1, "tpot": 0.01}) == pytest.approx(0.5)
    assert not Targets() and Targets(ttft=1.0)
    says(str(targets), "TTFT 200 ms", "TPOT 20.0 ms")


@pytest.mark.parametrize("limit", [0, -0.1, math.inf, math.nan, True, "20ms"])
@pytest.mark.parametrize("name", ["ttft", "tpot"])
def test_a_target_that_is_no_time_is_refused(name: str, limit: object) -> None:
    with refuses(ValueError, name, "above 0", f"got {limit!r}"):
        compare_meshes("mixtral-8x7b", 8, "h100-sxm", batch_size=8, **{name: limit})  # type: ignore[arg-type]


def test_without_targets_no_row_meets_or_misses_any(plain: list[MeshRow]) -> None:
    assert {row.meets_targets for row in plain} == {None}
    assert not any(row.misses or row.times_target for row in plain)


def test_rows_that_meet_come_first_and_the_others_by_how_far_they_are(plain: list[MeshRow]) -> None:
    """The prefill's target is one that the fastest step misses, so that the order is another one."""
    usable = [row for row in plain if row.fits and row.built]
    place = 4 * len(usable) // 7  # beyond the middle
    ttft, tpot = sorted(row.ttft_seconds for row in usable)[place], sorted(row.tpot_seconds for row in usable)[place]
    rows = asked(plain, ttft=ttft, tpot=tpot)
    found = [row for row in rows if row.fits and row.built]
    meeting = [row for row in found if row.meets_targets]
    assert 1 < len(meeting) < len(found) - 1 and not usable[0].ttft_seconds <= ttft
    assert found[: len(meeting)] == meeting
    scores = [score(row, "latency") for row in meeting]
    alike = len(equally_good(meeting, "latency"))  # of these the simplest is first
    assert max(scores[:alike]) <= (1 + SAME) * min(scores) and scores[alike:] == sorted(scores[alike:])
    speeds = [row.tokens_per_second_per_device for row in meeting[alike:]]
    assert speeds == sorted(speeds, reverse=True)
    far = [row.times_target for row in found[len(meeting) :]]
    assert far == sorted(far) and far[0] > 1
    assert all(row.ttft_seconds <= ttft and row.tpot_seconds <= tpot for row in meeting)
    for row in found[len(meeting) :]:
        took = {"ttft": (row.ttft_seconds, ttft), "tpot": (row.tpot_seconds, tpot)}
        assert row.misses == {name: mine - limit for name, (mine, limit) in took.items() if mine > limit} != {}
        assert row.times_target == max(mine / limit for mine, limit in took.values())
    assert first(rows, "latency") is meeting[0] and best(rows, "latency") not in meeting


def test_the_objective_orders_those_that_meet(plain: list[MeshRow]) -> None:
    fits = [row for row in plain if row.fits and row.built]
    limit = sorted(row.tpot_seconds for row in fits)[8]
    for objective in ("memory", "ttft"):
        rows = compare_meshes("mixtral-8x7b", 8, "h100-sxm", batch_size=8, tpot=limit, objective=objective)
        scores = [score(row, objective) for row in rows if row.meets_targets]
        assert len(scores) == 9 and scores == sorted(scores)


def test_what_cannot_be_used_meets_nothing(plain: list[MeshRow]) -> None:
    rows = asked(plain, ttft=3600.0, tpot=3600.0)
    for row in rows:
        assert row.meets_targets is (row.fits and row.built)
    assert {row.why_not for row in rows if not row.meets_targets and row.fits} == {"not built"}
    assert any(row.misses == {"ttft": math.inf, "tpot": math.inf} for row in rows if not row.fits)


def test_what_a_row_misses_is_in_its_line(plain: list[MeshRow]) -> None:
    row = replace(plain[0], targets=Targets(ttft=0.001, tpot=0.0015))
    over = row.tpot_seconds - 0.0015
    says(repr(row), "misses TTFT", "TPOT", f"{1000 * over:.2f} ms")
    assert "misses" not in repr(plain[0])
