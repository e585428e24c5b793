"""Why a split is the best: a sentence, from what it saves most against the next one. Imports no JAX."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from moejax.planning.ranking import best, score
from moejax.planning.rows import OBJECTIVES, MeshRow, Objective, Phase
from moejax.planning.units import BYTES, SECONDS, Unit, pair

SAME = 0.001  # relative difference below which two splits count as equally good


def with_reasons(rows: Sequence[MeshRow]) -> list[MeshRow]:
    """The rows of one batch size, with `best_for` filled in those that are best for something."""
    found: dict[int, dict[Objective, str]] = {}
    for objective in OBJECTIVES:
        winner = best(rows, objective)
        if winner is not None:
            place = next(number for number, row in enumerate(rows) if row is winner)
            found.setdefault(place, {})[objective] = reason(winner, rows, objective)
    return [replace(row, best_for=found[number]) if number in found else row for number, row in enumerate(rows)]


def reason(row: MeshRow, rows: Iterable[MeshRow], objective: Objective) -> str:
    """What `row` has over the next best of `rows` that can be used, by `objective`: a sentence whose subject it is."""
    others = [other for other in rows if other.fits and other.built and other.split != row.split]
    if not others:
        return "is the only split that fits"
    mine = score(row, objective)
    ties = [other for other in others if abs(score(other, objective) - mine) <= SAME * abs(mine)]
    behind = [other for other in others if other not in ties]
    equal = f"equally good: {_listed(ties)}" if ties else ""
    if not behind:
        return f"is as good as {_listed(ties)}"
    other = min(behind, key=lambda other: score(other, objective))
    next_best = f"the next, {other.label}, {_behind(mine, score(other, objective), objective)}"
    return "; ".join(filter(None, (_saving(row, other, objective), next_best, equal)))


def _listed(rows: list[MeshRow]) -> str:
    more = len(rows) - 2
    names = [row.label for row in rows[:2]] + ([f"{more} more"] if more > 0 else [])
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _behind(mine: float, its: float, objective: Objective) -> str:
    match objective:
        case "throughput":
            return f"decodes {1 - its / mine:.1%} fewer"
        case "memory":
            return f"needs {_more(its / mine, 'much')}"
        case _:
            return f"takes {_more(its / mine, 'long')}"


def _more(ratio: float, word: str) -> str:
    """How a ratio above 1 is said: "30.7% longer", "2.4 times as long"."""
    comparative = {"long": "longer", "much": "more"}[word]
    return f"{ratio - 1:.1%} {comparative}" if ratio < 2 else f"{ratio:,.3g} times as {word}"


def _saving(row: MeshRow, other: MeshRow, objective: Objective) -> str:
    if objective == "throughput":
        speeds = _instead("decodes {} instead of {} tokens/s", row.peak_tokens_per_second, other.peak_tokens_per_second)
        if row.largest_batch == other.largest_batch:
            return f"{speeds} at the largest batch ({row.largest_batch:,})"
        return f"{speeds} at the largest batch of each ({row.largest_batch:,} and {other.largest_batch:,})"
    if objective == "memory":
        assert row.footprint and other.footprint, "both fit"
        mine, its = pair(row.footprint.total, other.footprint.total, BYTES)
        return f"holds {mine} instead of {its} per device"
    mine, its = (row.decode, other.decode) if objective == "latency" else (row.prefill, other.prefill)
    assert mine and its, "both fit"
    savings = _savings(mine, its)
    return savings[max(savings)]


def _savings(mine: Phase, its: Phase) -> dict[float, str]:
    """Seconds that each part saves, and how to say it."""
    shared = (mine.weight_bytes - mine.expert_bytes, its.weight_bytes - its.expert_bytes)
    per_byte = its.weights_seconds / its.weight_bytes

    def seconds(sentence: str, name: str) -> tuple[float, str]:
        ours, theirs = getattr(mine, name), getattr(its, name)
        return theirs - ours, _of(sentence, ours, theirs, SECONDS)

    return dict(
        [
            (
                (its.expert_bytes - mine.expert_bytes) * per_byte,
                _instead("reads {} instead of {} experts per layer and device", mine.experts_read, its.experts_read),
            ),
            (
                (shared[1] - shared[0]) * per_byte,
                _of("reads {} instead of {} of weights outside the experts per device", shared[0], shared[1], BYTES),
            ),
            (
                its.kv_seconds - mine.kv_seconds,
                _of("reads {} instead of {} of the cache per device", mine.kv_bytes, its.kv_bytes, BYTES),
            ),
            seconds("spends {} instead of {} on computing that reads do not hide", "exposed_compute_seconds"),
            seconds("waits {} instead of {} for the latency of collectives", "latency_seconds"),
            seconds("spends {} instead of {} on sending data between devices", "bandwidth_seconds"),
            seconds("spends {} instead of {} on overhead of layers and experts", "overhead_seconds"),
        ]
    )


def _of(sentence: str, mine: float, its: float, units: Sequence[Unit]) -> str:
    return sentence.format(*pair(mine, its, units))


def _instead(sentence: str, mine: float, its: float) -> str:
    return sentence.format(*pair(mine, its))
