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
    """Best first; those that cannot be used last, the one that lacks least first among them."""
    return sorted(rows, key=lambda row: (not row.fits, row.footprint is None, score(row, objective), row.over_bytes))


def best(rows: Iterable[MeshRow], objective: str) -> MeshRow | None:
    """The first of the rows that can be used and are built; None where none can."""
    usable = [row for row in rows if row.fits and row.built]
    return min(usable, key=lambda row: score(row, objective), default=None)
