"""Why a split is the best: one sentence, from what it saves most against the next one. Imports no JAX."""

from collections.abc import Iterable

from moejax.planning.compare import Objective, score
from moejax.planning.rows import MeshRow, Phase

SAME = 0.001  # relative difference below which two splits count as equally good


def reason(row: MeshRow, rows: Iterable[MeshRow], objective: Objective) -> str:
    """What `row` has over the next best of `rows` that can be used, by `objective`."""
    others = [other for other in rows if other.fits and other.built and other.split != row.split]
    mine = score(row, objective)
    ties = [other for other in others if abs(score(other, objective) - mine) <= SAME * abs(mine)]
    others = [other for other in others if other not in ties]
    equal = f"as good: {_listed(ties)}" if ties else ""
    if not others:
        return equal or "the only split that fits"
    other = min(others, key=lambda other: score(other, objective))
    compared = f"next: {other.label}, {_behind(mine, score(other, objective), objective)}"
    return f"{_saving(row, other, objective)} ({compared}{'; ' if equal else ''}{equal})"


def _listed(rows: list[MeshRow]) -> str:
    more = len(rows) - 2
    return " and ".join(row.label for row in rows[:2]) + (f" and {more} more" if more > 0 else "")


def _behind(mine: float, its: float, objective: Objective) -> str:
    match objective:
        case "throughput":
            return f"{1 - its / mine:.1%} fewer"
        case "memory":
            return f"{its / mine - 1:.1%} more"
        case _:
            return f"{its / mine - 1:.1%} slower"


def _saving(row: MeshRow, other: MeshRow, objective: Objective) -> str:
    if objective == "throughput":
        return (
            f"decodes {row.peak_tokens_per_second:,.0f} instead of {other.peak_tokens_per_second:,.0f} tokens/s at the "
            f"largest batch that fits ({row.largest_batch:,} and {other.largest_batch:,})"
        )
    if objective == "memory":
        assert row.footprint and other.footprint, "both fit"
        return f"holds {row.footprint.total / 1e9:.1f} instead of {other.footprint.total / 1e9:.1f} GB per device"
    mine, its = (row.decode, other.decode) if objective == "latency" else (row.prefill, other.prefill)
    assert mine and its, "both fit"
    savings = _savings(mine, its)
    return savings[max(savings)]


def _savings(mine: Phase, its: Phase) -> dict[float, str]:
    """Seconds that each part saves, and how to say it."""
    shared = [phase.weight_bytes - phase.expert_bytes for phase in (mine, its)]
    per_byte = its.weights_seconds / its.weight_bytes
    return {
        (its.expert_bytes - mine.expert_bytes) * per_byte: _instead(
            "reads {} instead of {} experts per layer and device", mine.experts_read, its.experts_read
        ),
        (shared[1] - shared[0]) * per_byte: _instead(
            "reads {} instead of {} GB of weights that all tokens use", shared[0] / 1e9, shared[1] / 1e9
        ),
        its.kv_seconds - mine.kv_seconds: _instead(
            "reads {} instead of {} GB of the cache per device", mine.kv_bytes / 1e9, its.kv_bytes / 1e9
        ),
        its.exposed_compute_seconds - mine.exposed_compute_seconds: _instead(
            "computes {} instead of {} ms longer than it reads",
            mine.exposed_compute_seconds * 1e3,
            its.exposed_compute_seconds * 1e3,
        ),
        its.latency_seconds - mine.latency_seconds: _instead(
            "waits {} instead of {} ms for collectives, whatever they carry",
            mine.latency_seconds * 1e3,
            its.latency_seconds * 1e3,
        ),
        its.bandwidth_seconds - mine.bandwidth_seconds: _instead(
            "sends for {} instead of {} ms between devices", mine.bandwidth_seconds * 1e3, its.bandwidth_seconds * 1e3
        ),
    }


def _instead(sentence: str, mine: float, its: float) -> str:
    """Both numbers with as many decimals as tell them apart, two at least."""
    decimals = next((n for n in range(2, 9) if round(mine, n) != round(its, n)), 2)
    return sentence.format(f"{mine:.{decimals}f}", f"{its:.{decimals}f}")
