"""Repeated measurements of one thing, and what to say of them. Imports no JAX."""

import math
import statistics
from collections.abc import Sequence

PERCENTILES = (10, 25, 50, 75, 90, 99)


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """The value below which each of `PERCENTILES` percent of the samples lie, interpolated, as `vllm bench` keys it."""
    ordered = sorted(samples)
    return {str(percent): _quantile(ordered, percent / 100) for percent in PERCENTILES}


def mean_and_spread(samples: Sequence[float]) -> tuple[float, float]:
    """The mean and the standard deviation (of a sample, 0 of a single one), as llama-bench gives them."""
    return statistics.fmean(samples), statistics.stdev(samples) if len(samples) > 1 else 0.0


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """How many times faster ours was, round by round, from the seconds of each: above 1 is faster.

    Raises:
        ValueError: for a different number of rounds.
    """
    return [their / our for our, their in zip(ours, theirs, strict=True)]


def ratio_text(ratio: float) -> str:
    """A ratio with two decimals, or as many as show that it is below 1."""
    digits = 2
    while ratio < 1 <= float(f"{ratio:.{digits}f}"):
        digits += 1
    return f"{ratio:.{digits}f}"


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below, above = math.floor(place), math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
