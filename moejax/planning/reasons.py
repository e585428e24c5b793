"""Why a split is the best: a sentence, from what it saves most against the next one. Imports no JAX."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from moejax.planning.objectives import OBJECTIVES
from moejax.planning.ranking import SAME, best, busy, equally_good, score
from moejax.planning.rows import MeshRow


def with_reasons(rows: Sequence[MeshRow]) -> list[MeshRow]:
    """The rows of one batch size, with `best_for` filled in those that are best for something."""
    found: dict[int, dict[str, str]] = {}
    for objective in OBJECTIVES:
        winner = best(rows, objective)
        if winner is not None:
            place = next(number for number, row in enumerate(rows) if row is winner)
            found.setdefault(place, {})[objective] = reason(winner, rows, objective)
    return [replace(row, best_for=found[number]) if number in found else row for number, row in enumerate(rows)]


def reason(row: MeshRow, rows: Iterable[MeshRow], objective: str) -> str:
    """What `row` has over the next best of `rows` that can be used, by `objective`: a sentence whose subject it is.

    `row` is the best, or the simplest of those that are equally good, which are then named first.
    """
    others = [other for other in rows if other.fits and other.built and other.split != row.split]
    if not others:
        return "is the only split that fits"
    others = busy(others)
    mine = score(row, objective)
    ties = [other for other in equally_good([row, *others], objective) if other is not row]
    equal = f"is the simplest of equally good splits (within {SAME:.0%}), beside {_listed(ties)}" if ties else ""
    behind = [other for other in others if score(other, objective) - mine > SAME * abs(mine)]
    if not behind:
        return equal
    other = min(behind, key=lambda other: score(other, objective))
    next_best = f"the next, {other.label}, {OBJECTIVES[objective].behind(mine, score(other, objective))}"
    return "; ".join(filter(None, (equal, OBJECTIVES[objective].saving(row, other), next_best)))


def _listed(rows: list[MeshRow]) -> str:
    more = len(rows) - 2
    names = [row.label for row in rows[:2]] + ([f"{more} more"] if more > 0 else [])
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
