"""Sizes and times as people read them: a unit in which they are neither 0.00 nor seven digits long. Imports no JAX."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Unit(NamedTuple):
    """least: of this unit, what is worth showing in it; below, the next smaller one is used."""

    name: str
    scale: float
    least: float


BYTES = (Unit("GB", 1e9, 0.1), Unit("MB", 1e6, 0.1), Unit("kB", 1e3, 0.1), Unit("bytes", 1.0, 0.0))
SECONDS = (Unit("s", 1.0, 10.0), Unit("ms", 1e-3, 0.1), Unit("us", 1e-6, 0.1), Unit("ns", 1e-9, 0.0))
LINK_RATES = (Unit("GB/s", 1e9, 0.1), Unit("MB/s", 1e6, 0.1), Unit("kB/s", 1e3, 0.1), Unit("bytes/s", 1.0, 0.0))
FLOPS = (Unit("GFLOP", 1e9, 0.1), Unit("MFLOP", 1e6, 0.1), Unit("kFLOP", 1e3, 0.1), Unit("FLOP", 1.0, 0.0))

FAR = 10_000  # ratio of two numbers that no unit suits both of

_SUFFIXES = (("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12))


def common_unit(values: Iterable[float], units: Sequence[Unit]) -> Unit:
    """One for all values of a column: the largest in which the smallest of them, zeros aside, is worth showing."""
    smallest = min((value for value in values if value > 0), default=units[0].least * units[0].scale)
    return next((unit for unit in units if smallest >= unit.least * unit.scale), units[-1])


def amount(value: float, units: Sequence[Unit]) -> str:
    """A number with its own unit: "23.5 GB", "67.1 MB", "16 bytes"."""
    unit = common_unit((value,), units)
    countable = unit.scale == 1 and not unit.least  # bytes, not seconds
    return f"{round(value):,} {unit.name}" if countable else f"{number(value / unit.scale)} {unit.name}"


def number(value: float) -> str:
    """About three digits, and six characters at most: 0.352, 1.64, 15.1, 206, 7,051, 1.23M."""
    if value == 0:
        return "0"
    if value < 0.00995:
        return f"{value:.1g}"
    for below, decimals in ((0.9995, 3), (9.995, 2), (99.95, 1), (99_999.5, 0)):
        if value < below:
            return f"{value:,.{decimals}f}"
    for suffix, scale in _SUFFIXES:
        if value < 999.5 * scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.0e}"


def pair(mine: float, its: float, units: Sequence[Unit] | None = None) -> tuple[str, str]:
    """Two numbers to compare, in one unit, which the second has behind it, with digits enough to tell them apart.

    Where one is more than FAR times the other, each has a unit of its own.
    """
    if units and min(mine, its) > 0 and max(mine, its) > FAR * min(mine, its):
        return amount(mine, units), amount(its, units)
    unit = common_unit((mine, its), units) if units else Unit("", 1.0, 0.0)
    first, second = _told_apart(mine / unit.scale, its / unit.scale, small=units is not None)
    return first, f"{second} {unit.name}".rstrip()


def _told_apart(first: float, second: float, *, small: bool) -> tuple[str, str]:
    """As many decimals as make three digits, two at most unless `small`, and as many more as it takes."""
    smaller, larger = sorted((first, second))
    if smaller == 0:
        return number(first), number(second)
    if larger < 0.005 or larger >= 1e12:
        return f"{first:.3g}", f"{second:.3g}"
    fewest = 3 if larger < 0.9995 and small else 2 if smaller < 9.995 else 1 if smaller < 99.95 else 0
    decimals = next((n for n in range(fewest, 9) if round(first, n) != round(second, n)), fewest)
    return f"{first:,.{decimals}f}", f"{second:,.{decimals}f}"
