"""How long kernels take: a fixed time, bytes at a share of the bandwidth, FLOPs at a share of the matrix rate.

Every coefficient is in a hardware file, fitted to measurements by scripts/fit_hardware.py; docs/performance-model.md
has the formulas with what they explain and what they miss. Imports no JAX.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

MATRICES = 3  # of an expert: gate, up, down
ACTIVATION = 2  # bytes of a number between products, whatever the weights' are

Number = Any  # a float, or an array of floats: formulas hold for one layer and, while fitting, for many at once


class Spent(NamedTuple):
    """Seconds on one device: fixed ones, reading, and those of computing that reading does not hide.

    computing: of all matrix products, hidden or not.
    """

    fixed: Number = 0.0
    reading: Number = 0.0
    beyond: Number = 0.0
    computing: Number = 0.0

    @property
    def seconds(self) -> Number:
        return self.fixed + self.reading + self.beyond

    def times(self, count: float) -> "Spent":
        return Spent(*(count * seconds for seconds in self))

    def scaled_to(self, seconds: float) -> "Spent":
        """The same parts of so many seconds in all."""
        return self.times(seconds / self.seconds) if self.seconds else Spent(fixed=seconds)

    def plus(self, other: "Spent") -> "Spent":
        return Spent(*(mine + its for mine, its in zip(self, other, strict=True)))


class DeviceRates(NamedTuple):
    """What a kernel runs on: bytes per second, FLOP per second in its dtype, bytes of the last cache (0: unknown)."""

    bandwidth: float
    rate: float
    cache_bytes: float = 0.0


def _term(low: float, high: float, default: Any = ...) -> Any:
    """A field that a hardware file gives, and the range that it must lie in."""
    bounds = {"low": low, "high": high}
    return field(metadata=bounds) if default is ... else field(default=default, metadata=bounds)


@dataclass(frozen=True, kw_only=True)
class ProductTerms:
    """A dense product of a projection, a router or the head.

    fixed: seconds of one.  bandwidth, rate: shares of the device's.  overlap: see `overlapped`.
    """

    fixed: float = _term(0, 1)
    bandwidth: float = _term(0.01, 1.5)
    rate: float = _term(0.001, 1.5)
    overlap: float = _term(1, 100)

    def spent(self, device: DeviceRates, bytes_read: Number, flops: Number, count: float = 1) -> Spent:
        """`count` products that together read so many bytes and compute so many FLOPs."""
        reading = bytes_read / (device.bandwidth * self.bandwidth)
        computing = flops / (device.rate * self.rate)
        return Spent(count * self.fixed, reading, overlapped(reading, computing, self.overlap) - reading, computing)


@dataclass(frozen=True, kw_only=True)
class StepTerms:
    """Attention of one query per sequence: a fixed time, keys and values at a share of the bandwidth, and the queries
    as if each of their bytes were read `queries` times.
    """

    fixed: float = _term(0, 1)
    bandwidth: float = _term(0.01, 1.5)
    queries: float = _term(0, 1000)

    def spent(self, device: DeviceRates, cache_read: Number, query_bytes: Number) -> Spent:
        reading = cache_read / (device.bandwidth * self.bandwidth)
        return Spent(self.fixed, reading, self.queries * query_bytes / device.bandwidth)


@dataclass(frozen=True, kw_only=True)
class PromptTerms:
    """Attention of whole prompts: a fixed time, FLOPs at a share of the matrix rate, and queries, keys and values as if
    each of their bytes were read `copies` times.
    """

    fixed: float = _term(0, 1)
    rate: float = _term(0.001, 1.5)
    copies: float = _term(0, 1000)

    def spent(self, device: DeviceRates, flops: Number, bytes_read: Number) -> Spent:
        reading = self.copies * bytes_read / device.bandwidth
        computing = flops / (device.rate * self.rate)
        return Spent(self.fixed, reading, computing, computing)


@dataclass(frozen=True, kw_only=True)
class BetweenTerms:
    """What runs between products, norms and residuals say: seconds of a layer, and the residual read `copies` times."""

    fixed: float = _term(0, 1)
    copies: float = _term(0, 1000)

    def spent(self, device: DeviceRates, residual_bytes: Number) -> Spent:
        return Spent(self.fixed, self.copies * residual_bytes / device.bandwidth)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A layer's experts on one device: `experts` of them, products between `inputs` and `width` columns."""

    experts: Number
    inputs: Number
    width: Number

    @classmethod
    def of(cls, *, experts: int, inputs: int, elements: float) -> "Shape":
        """From the elements of one expert's weights."""
        return cls(experts=experts, inputs=inputs, width=round(elements / (MATRICES * inputs)))

    @property
    def elements(self) -> Number:
        """Of one expert's weights."""
        return MATRICES * self.inputs * self.width


@dataclass(frozen=True, kw_only=True)
class DeviceLoad:
    """What a layer's experts have to do on one device, each number a mean over samples.

    tokens: of the group.  elsewhere: rows (token and expert) of other devices' experts.
    active: experts here that have rows.  rows: of all of them.
    filled: by rows of a tile, the rows when those of each expert are filled up to whole tiles.
    """

    tokens: Number
    elsewhere: Number
    active: Number
    rows: Number
    filled: Mapping[int, Number]

    @classmethod
    def of(cls, tokens: int, chosen: int, rows: Int[np.ndarray, "samples E"], tiles: Collection[int]) -> "DeviceLoad":
        """From the rows of each expert, of `chosen` experts per token."""
        here = float(rows.sum(axis=1).mean())
        return cls(
            tokens=tokens,
            elsewhere=tokens * chosen - here,
            active=float((rows > 0).sum(axis=1).mean()),
            rows=here,
            filled={tile: float((-(-rows // tile) * tile).sum(axis=1).mean()) for tile in tiles},
        )


@dataclass(frozen=True, kw_only=True)
class ExpertTerms:
    """The experts of a layer, with routing, permutation and combination around them.

    fixed: seconds of a layer.  per_token, per_expert: of each token of the group, and of each expert held.
    bandwidth: the share reached by reading the weights of the experts that have rows.
    tiles: by rows of a tile, the share of the matrix rate reached by full tiles. Rows of each expert are filled up to
        whole tiles, so that a skewed load pays for the largest expert, and the tile that takes least time is used; with
        `by_tokens`, the smallest while there are no more tokens than experts, and the largest from then on.
    overlap: see `overlapped`.
    narrow: columns that are computed besides those of each expert: what a thin part of one costs beyond its size.
    copies: how often each row's activations are written and read besides.
    elsewhere: how often the activations of each row of other devices' experts are written all the same.
    again: the share that each further tile of rows reads from memory again, of what is more of one expert's weights
        than the device's cache holds.
    cached: by how much faster weights are read that fit the device's cache and were read just before. Only a benchmark
        does that, over and over with one layer: `resident` asks for it.
    """

    fixed: float = _term(0, 1)
    bandwidth: float = _term(0.01, 1.5)
    overlap: float = _term(1, 100)
    narrow: float = _term(0, 1e5)
    copies: float = _term(0, 1000)
    per_token: float = _term(0, 1e-3)
    per_expert: float = _term(0, 1e-3)
    elsewhere: float = _term(0, 1000)
    again: float = _term(0, 10, 0.0)
    cached: float = _term(1, 100, 1.0)
    tiles: Mapping[int, float] = _term(0.0001, 1.5)
    by_tokens: bool = False

    def spent(
        self, device: DeviceRates, shape: Shape, load: DeviceLoad, item: float, *, resident: bool = False
    ) -> Spent:
        """One layer.  item: bytes of a weight."""
        read = load.active * shape.elements * item
        tiles = load.filled[max(self.tiles)] / max(self.tiles)
        expert = shape.elements * item
        read = read + self.again * (tiles - load.active) * np.maximum(0.0, expert - device.cache_bytes)
        reading = read / (device.bandwidth * self.bandwidth)
        if resident:
            reading = reading / np.where(read <= device.cache_bytes, self.cached, 1.0)
        flops_per_row = 2 * MATRICES * shape.inputs * (shape.width + self.narrow)
        computing = self._tiles_rows(load, shape) * flops_per_row / device.rate
        moved = load.rows * (2 * shape.inputs + MATRICES * shape.width) * ACTIVATION
        moved = self.copies * moved + self.elsewhere * load.elsewhere * shape.inputs * ACTIVATION
        fixed = self.fixed + load.tokens * self.per_token + shape.experts * self.per_expert
        beyond = overlapped(reading, computing, self.overlap) - reading
        return Spent(fixed, reading, beyond + moved / device.bandwidth, computing)

    def _tiles_rows(self, load: DeviceLoad, shape: Shape) -> Number:
        """Rows as if they were computed at the whole matrix rate."""
        rows = {tile: load.filled[tile] / share for tile, share in self.tiles.items()}
        if not self.by_tokens:
            return np.min(list(rows.values()), axis=0)
        return np.where(load.tokens <= shape.experts, rows[min(rows)], rows[max(rows)])


@dataclass(frozen=True, kw_only=True)
class SoftwareKernels:
    """What one piece of software runs in one dtype.

    experts: of shapes that its authors tuned, or of all.  untuned: of the others, None where there is no difference.
    tuned: (experts, width) on a device.
    inputs, widths: the least and the most of the layers that the terms were fitted to.
    """

    product: ProductTerms
    between: BetweenTerms
    step: StepTerms
    prompt: PromptTerms
    experts: ExpertTerms
    untuned: ExpertTerms | None = None
    tuned: frozenset[tuple[int, int]] = frozenset()
    inputs: tuple[float, float] = (0.0, math.inf)
    widths: tuple[float, float] = (0.0, math.inf)

    def beyond(self, shape: Shape) -> float:
        """How many times outside of the layers that were fitted to a shape lies; 1 inside."""
        ranges = ((*self.inputs, shape.inputs), (*self.widths, shape.width))
        return max(1.0, *(max(size / most, least / size) for least, most, size in ranges))

    def experts_for(self, shape: Shape) -> ExpertTerms:
        """The terms of experts of this shape."""
        if self.untuned is None or (shape.experts, shape.width) in self.tuned:
            return self.experts
        return self.untuned


@dataclass(frozen=True, kw_only=True)
class Software:
    """What computes: its kernels by dtype, and whose collectives it calls.

    title: name and version.  products: dense products of a layer, each with a fixed time.
    all_reduce, collectives: the libraries of its all-reduces and of all others, as in `Hardware.collectives`.
    """

    title: str
    kernels: Mapping[str, SoftwareKernels]
    all_reduce: str
    collectives: str
    products: int = 3


def overlapped(first: Number, second: Number, exponent: float) -> Number:
    """Seconds of two things done at the same time: (first^p + second^p)^(1/p), their sum for 1, their maximum for
    infinity.
    """
    longer, shorter = np.maximum(first, second), np.minimum(first, second)
    return longer * (1 + (shorter / np.maximum(longer, 1e-30)) ** exponent) ** (1 / exponent)


def on_curve(points: Mapping[int, float], at: float) -> float:
    """The value at `at`: straight lines between logarithms, outside of the points that of the nearest one."""
    order = sorted(points)
    within = min(max(at, order[0]), order[-1])
    for low, high in pairwise(order):
        if within <= high:
            return points[low] * (points[high] / points[low]) ** (math.log(within / low) / math.log(high / low))
    return points[order[-1]]


def curve_seconds(curve: Mapping[int, float], size: float) -> float:
    """Seconds at so many bytes: on the curve, and beyond the largest in proportion."""
    return on_curve(curve, size) * max(1.0, size / max(curve))
