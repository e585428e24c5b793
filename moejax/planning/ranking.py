"""What ranks the rows of a comparison. Imports no JAX."""

from collections.abc import Iterable
from difflib import get_close_matches

from moejax.planning.rows import OBJECTIVES, MeshRow, Objective


def check_objective(name: str) -> Objective:
    """Checks the name of an objective.

    Raises:
        ValueError: for an unknown one, listing the known.
    """
    for known in OBJECTIVES:
        if name == known:
            return known
    near = get_close_matches(str(name), OBJECTIVES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown objective {name!r}: the known ones are {', '.join(OBJECTIVES)}{hint}")


def score(row: MeshRow, objective: Objective) -> float:
    """What is to be small; infinite where the split cannot be used."""
    if not row.fits or row.decode is None or row.prefill is None or row.footprint is None:
        return float("inf")
    match objective:
        case "latency":
            return row.decode.seconds
        case "throughput":
            return -row.peak_tokens_per_second
        case "ttft":
            return row.prefill.seconds
        case "memory":
            return float(row.footprint.total)


def ranked(rows: Iterable[MeshRow], objective: Objective) -> list[MeshRow]:
    """Best first; those that cannot be used last, the one that lacks least first among them."""
    return sorted(rows, key=lambda row: (not row.fits, row.footprint is None, score(row, objective), row.over_bytes))


def best(rows: Iterable[MeshRow], objective: Objective) -> MeshRow | None:
    """The first of the rows that can be used and are built; None where none can."""
    usable = [row for row in rows if row.fits and row.built]
    return min(usable, key=lambda row: score(row, objective), default=None)
