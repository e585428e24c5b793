"""What a comparison can be ranked by: a table, one row each. Imports no JAX.

Adding one: a row in `OBJECTIVES`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from moejax.planning.rows import MeshRow, Phase
from moejax.planning.units import BYTES, SECONDS, Unit, pair


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What ranks rows that can be used.

    score: what is to be small.  column: of the table, that shows it.
    saving: (row, next best) -> what the row has over it, a sentence whose subject it is.
    behind: (score of the row, of the next best) -> the same of the next best.
    """

    score: Callable[[MeshRow], float]
    column: str
    saving: Callable[[MeshRow, MeshRow], str]
    behind: Callable[[float, float], str]


def check_objective(name: str) -> str:
    """Returns the name of an objective, which may be given in any case.

    Raises:
        ValueError: for an unknown one, listing the known.
    """
    if str(name).lower() in OBJECTIVES:
        return str(name).lower()
    near = get_close_matches(str(name).lower(), OBJECTIVES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown objective {name!r}: the known ones are {', '.join(OBJECTIVES)}{hint}")


def _step_seconds(row: MeshRow) -> float:
    assert row.decode, "it fits"
    return row.decode.seconds


def _first_seconds(row: MeshRow) -> float:
    assert row.prefill, "it fits"
    return row.prefill.seconds


def _device_bytes(row: MeshRow) -> float:
    assert row.footprint, "it fits"
    return row.footprint.total


def _in_a_step(row: MeshRow, other: MeshRow) -> str:
    assert row.decode and other.decode, "both fit"
    return _largest_saving(row.decode, other.decode)


def _in_the_prefill(row: MeshRow, other: MeshRow) -> str:
    assert row.prefill and other.prefill, "both fit"
    return _largest_saving(row.prefill, other.prefill)


def _in_tokens(row: MeshRow, other: MeshRow) -> str:
    speeds = _instead("decodes {} instead of {} tokens/s", row.peak_tokens_per_second, other.peak_tokens_per_second)
    if row.largest_batch == other.largest_batch:
        return f"{speeds} at the largest batch ({row.largest_batch:,})"
    return f"{speeds} at the largest batch of each ({row.largest_batch:,} and {other.largest_batch:,})"


def _in_memory(row: MeshRow, other: MeshRow) -> str:
    mine, its = pair(_device_bytes(row), _device_bytes(other), BYTES)
    return f"holds {mine} instead of {its} per device"


def _more(ratio: float, word: str) -> str:
    """How a ratio above 1 is said: "30.7% longer", "2.4 times as long"."""
    comparative = {"long": "longer", "much": "more"}[word]
    return f"{ratio - 1:.1%} {comparative}" if ratio < 2 else f"{ratio:,.3g} times as {word}"


def _takes_longer(mine: float, its: float) -> str:
    return f"takes {_more(its / mine, 'long')}"


OBJECTIVES: Mapping[str, Objective] = {
    "latency": Objective(score=_step_seconds, column="step", saving=_in_a_step, behind=_takes_longer),
    "throughput": Objective(
        score=lambda row: -row.peak_tokens_per_second,
        column="peak",
        saving=_in_tokens,
        behind=lambda mine, its: f"decodes {1 - its / mine:.1%} fewer",
    ),
    "ttft": Objective(score=_first_seconds, column="TTFT", saving=_in_the_prefill, behind=_takes_longer),
    "memory": Objective(
        score=_device_bytes,
        column="memory",
        saving=_in_memory,
        behind=lambda mine, its: f"needs {_more(its / mine, 'much')}",
    ),
}


def _largest_saving(mine: Phase, its: Phase) -> str:
    savings = _savings(mine, its)
    return savings[max(savings)]


def _savings(mine: Phase, its: Phase) -> dict[float, str]:
    """Seconds that each part saves, and how to say it."""
    shared = (mine.weight_bytes - mine.expert_bytes, its.weight_bytes - its.expert_bytes)
    per_byte = its.weights_seconds / its.weight_bytes
    reading = its.weights_seconds - mine.weights_seconds
    slower = reading - (its.weight_bytes - mine.weight_bytes) * per_byte  # the same bytes, or read more often

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
            (
                min(slower, reading),
                _of("spends {} instead of {} on reading weights", mine.weights_seconds, its.weights_seconds, SECONDS),
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
