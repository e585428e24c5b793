"""What ranks the rows of a comparison. Imports no JAX."""

from collections.abc import Iterable, Sequence

from moejax.moe.split import DISPATCHES
from moejax.planning.objectives import OBJECTIVES
from moejax.planning.rows import MeshRow

SAME = 0.01  # relative difference up to which splits count as equally good; predictions are off by several percent


def score(row: MeshRow, objective: str) -> float:
    """What is to be small; infinite where the split cannot be used."""
    if not row.fits or row.decode is None or row.prefill is None or row.footprint is None:
        return float("inf")
    return OBJECTIVES[objective].score(row)


def ranked(rows: Iterable[MeshRow], objective: str) -> list[MeshRow]:
    """Best first; those that cannot be used last, the one that lacks least first among them.

    With targets, those that meet them are the best, and the others follow by how far they are from them. Splits that
    leave copies of the model idle come after those that do not: fewer devices would do what they do. Of those that are
    as good as the best, the simplest comes first.
    """
    ordered = sorted(
        rows, key=lambda row: (not row.fits, row.footprint is None, *_place(row, objective), row.over_bytes)
    )
    far, idle, least = _place(ordered[0], objective) if ordered and ordered[0].fits else (True, True, 0.0)
    if far:  # all of them, and then the nearest is first
        return ordered
    places = [_place(row, objective) for row in ordered if row.fits]
    count = sum(place[:2] == (far, idle) and _same(least, place[2]) for place in places)
    return [*sorted(ordered[:count], key=_parts), *ordered[count:]]


def first(rows: Iterable[MeshRow], objective: str) -> MeshRow | None:
    """The row to take: as `ranked`, of those that can be used and are built; None where none can."""
    return next(iter(ranked((row for row in rows if row.fits and row.built), objective)), None)


def _place(row: MeshRow, objective: str) -> tuple[bool, bool, float]:
    far = row.meets_targets is False and row.fits
    return far, bool(row.idle_copies), row.times_target if far else score(row, objective)


def best(rows: Iterable[MeshRow], objective: str) -> MeshRow | None:
    """The best by `objective`, whatever the targets, of those that can be used and are built; None where none can.

    Of several that are equally good, the simplest.
    """
    return min(equally_good(busy(rows), objective), key=_parts, default=None)


def equally_good(rows: Sequence[MeshRow], objective: str) -> list[MeshRow]:
    """Of rows that can be used, the best and those that are within `SAME` of it; the best first."""
    ordered = sorted(rows, key=lambda row: score(row, objective))
    return [row for row in ordered if _same(score(ordered[0], objective), score(row, objective))]


def _same(least: float, other: float) -> bool:
    return other - least <= SAME * abs(least)


def _parts(row: MeshRow) -> tuple[int, int]:
    """What makes a split less simple: the axes that split something, and the dispatch, in the order of their table."""
    named = 1 + list(DISPATCHES).index(row.split.dispatch) if row.names_dispatch else 0
    return sum(size > 1 for size in row.split.mesh.shape.values()), named


def busy(rows: Iterable[MeshRow]) -> list[MeshRow]:
    """Those that can be used and leave no copy of the model idle, or all of them where every one does."""
    usable = [row for row in rows if row.fits and row.built]
    return [row for row in usable if not row.idle_copies] or usable
