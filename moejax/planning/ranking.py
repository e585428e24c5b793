"""What ranks the rows of a comparison. Imports no JAX."""

from collections.abc import Iterable

from moejax.planning.objectives import OBJECTIVES
from moejax.planning.rows import MeshRow


def score(row: MeshRow, objective: str) -> float:
    """What is to be small; infinite where the split cannot be used."""
    if not row.fits or row.decode is None or row.prefill is None or row.footprint is None:
        return float("inf")
    return OBJECTIVES[objective].score(row)


def ranked(rows: Iterable[MeshRow], objective: str) -> list[MeshRow]:
    """Best first; those that cannot be used last, the one that lacks least first among them.

    With targets, those that meet them are the best, and the others follow by how far they are from them. Splits that
    leave copies of the model idle come after those that do not: fewer devices would do what they do.
    """
    return sorted(rows, key=lambda row: (not row.fits, row.footprint is None, *_place(row, objective), row.over_bytes))


def first(rows: Iterable[MeshRow], objective: str) -> MeshRow | None:
    """The row to take: as `ranked`, of those that can be used and are built; None where none can."""
    usable = [row for row in rows if row.fits and row.built]
    return min(usable, key=lambda row: _place(row, objective), default=None)


def _place(row: MeshRow, objective: str) -> tuple[bool, bool, float]:
    far = row.meets_targets is False and row.fits
    return far, bool(row.idle_copies), row.times_target if far else score(row, objective)


def best(rows: Iterable[MeshRow], objective: str) -> MeshRow | None:
    """The best by `objective`, whatever the targets, of those that can be used and are built; None where none can."""
    return min(busy(rows), key=lambda row: score(row, objective), default=None)


def busy(rows: Iterable[MeshRow]) -> list[MeshRow]:
    """Those that can be used and leave no copy of the model idle, or all of them where every one does."""
    usable = [row for row in rows if row.fits and row.built]
    return [row for row in usable if not row.idle_copies] or usable
