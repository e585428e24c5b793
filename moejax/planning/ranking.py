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

    With targets, those that meet them are the best, and the others follow by how far they are from them.
    """
    return sorted(rows, key=lambda row: (not row.fits, row.footprint is None, *_place(row, objective), row.over_bytes))


def first(rows: Iterable[MeshRow], objective: str) -> MeshRow | None:
    """The row to take: as `ranked`, of those that can be used and are built; None where none can."""
    usable = [row for row in rows if row.fits and row.built]
    return min(usable, key=lambda row: _place(row, objective), default=None)


def _place(row: MeshRow, objective: str) -> tuple[bool, float]:
    far = row.meets_targets is False and row.fits
    return far, row.times_target if far else score(row, objective)


def best(rows: Iterable[MeshRow], objective: str) -> MeshRow | None:
    """The best by `objective` alone of the rows that can be used and are built; None where none can."""
    usable = [row for row in rows if row.fits and row.built]
    return min(usable, key=lambda row: score(row, objective), default=None)
