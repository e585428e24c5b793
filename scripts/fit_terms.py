"""Least squares: the terms of `moejax.planning.kernels` that explain measured tables best. For `scripts.fit_hardware`.

Logarithms of seconds are fitted, so that a layer of 50 us counts as much as one of 50 ms, with a loss that does not
follow outliers.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from scipy.optimize import least_squares

from moejax.planning.kernels import (
    BetweenTerms,
    DeviceLoad,
    DeviceRates,
    ExpertTerms,
    ProductTerms,
    PromptTerms,
    Shape,
    StepTerms,
)
from moejax.planning.loads import Balanced, PowerLaw
from moejax.planning.routing import RoutingModel
from moejax.planning.silicon import Frame

TILES = (16, 32, 64, 128)
BY_TOKENS = (16, 64)  # of kernels that nobody tuned: Triton's defaults in vLLM and SGLang
LOADS = {"balanced": Balanced(), "power_law_1.01": PowerLaw(1.01), "power_law_1.2": PowerLaw(1.2)}
HELD_OUT_SHAPE = {"hidden_size": 2048, "inter_size": 768, "topk": 8, "num_experts": 128}  # Qwen3-30B-A3B
HELD_OUT_LOAD = "power_law_1.2"
MOST_DEVICES = 8
# By term, what a fit starts from, and bounds: tighter than what a file may hold, for beyond them a term only makes up
# for another one.
LIMITS: dict[str, tuple[float, float, float]] = {
    "fixed": (1e-5, 1e-7, 1e-3),
    "bandwidth": (0.8, 0.05, 1.0),
    "rate": (0.7, 0.05, 1.0),
    "overlap": (2.0, 1.02, 20.0),
    "narrow": (1.0, 1e-2, 600.0),
    "copies": (1.0, 1e-3, 30.0),
    "queries": (10.0, 1e-3, 100.0),
    "per_token": (1e-9, 1e-12, 1e-6),
    "per_expert": (1e-9, 1e-12, 1e-5),
    "elsewhere": (0.1, 1e-4, 30.0),
    "again": (0.05, 1e-4, 1.0),
    "cached": (2.0, 1.0, 10.0),
    "tiles": (0.3, 0.005, 1.0),
}
ADDED = ("narrow", "copies", "queries", "per_token", "per_expert", "elsewhere", "again")  # at their least they are 0
Pair = tuple[np.ndarray, np.ndarray]  # seconds predicted and measured
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Measured MoE layers, and what the busiest device has to do in each.

    table: a row each.  shape, load: arrays of as many.  seconds: measured.
    """

    table: Frame
    shape: Shape
    load: DeviceLoad
    seconds: np.ndarray

    @classmethod
    def of(cls, table: Frame) -> "Layers":
        loads = [
            busiest(row.distribution, row.num_experts, row.topk, row.moe_ep_size, row.num_tokens)
            for row in table.itertuples()
        ]
        return cls(
            table=table,
            shape=Shape(
                experts=(table.num_experts / table.moe_ep_size).to_numpy(),
                inputs=table.hidden_size.to_numpy(dtype=float),
                width=(table.inter_size / table.moe_tp_size).to_numpy(),
            ),
            load=DeviceLoad(
                tokens=table.num_tokens.to_numpy(dtype=float),
                elsewhere=np.array([one.elsewhere for one in loads]),
                active=np.array([one.active for one in loads]),
                rows=np.array([one.rows for one in loads]),
                filled={tile: np.array([one.filled[tile] for one in loads]) for tile in TILES},
            ),
            seconds=table.seconds.to_numpy(),
        )

    @property
    def shapes(self) -> frozenset[tuple[int, int]]:
        """(experts on a device, their width) of all layers."""
        return frozenset((int(e), int(w)) for e, w in zip(self.shape.experts, self.shape.width, strict=True))

    def among(self, shapes: Collection[tuple[int, int]]) -> np.ndarray:
        """Which have one of these shapes: experts on a device, and their width."""
        return np.array([one in shapes for one in zip(self.shape.experts, self.shape.width, strict=True)])

    @property
    def held_out(self) -> np.ndarray:
        """Which were not fitted to: another model's shape, or another load."""
        shape = np.logical_and.reduce([self.table[key] == value for key, value in HELD_OUT_SHAPE.items()])
        return shape | (self.table.distribution == HELD_OUT_LOAD).to_numpy()


@lru_cache(maxsize=100_000)
def busiest(distribution: str, num_experts: int, topk: int, parts: int, tokens: int) -> DeviceLoad:
    """What the tables' load gives to the device that has most rows."""
    rows = RoutingModel(num_experts, topk, load=LOADS[distribution]).busiest(parts, tokens)
    return DeviceLoad.of(tokens, topk, rows, TILES)


def fit_experts(
    layers: Layers, device: DeviceRates, item: float, tuned: np.ndarray
) -> tuple[ExpertTerms, ExpertTerms | None, np.ndarray]:
    """Terms for tuned shapes (for all, where none is known to be), for the others, and seconds predicted with them.

    What the shapes' products have nothing to do with is the same in both.
    """
    names = [one.name for one in fields(ExpertTerms) if one.name not in ("tiles", "by_tokens")]
    apart = tuned.any() and not tuned.all()
    variants: list[tuple[int, ...]] = [BY_TOKENS, TILES] if apart else [TILES, BY_TOKENS]
    used = ~layers.held_out
    best: tuple[float, Any] = (np.inf, None)
    for tiles in variants:
        first = TILES if apart else tiles

        def terms(x: np.ndarray, first: tuple[int, ...] = first, tiles: tuple[int, ...] = tiles):
            shared = dict(zip(names, map(float, x), strict=False))
            shares = list(map(float, x[len(names) :]))
            main = ExpertTerms(**shared, tiles=dict(zip(first, shares, strict=False)), by_tokens=first is BY_TOKENS)
            if not apart:
                return main, None
            bandwidth, shares = shares[len(first)], shares[len(first) + 1 :]
            others = dict(zip(tiles, shares, strict=True))
            return main, ExpertTerms(**shared | {"bandwidth": bandwidth}, tiles=others, by_tokens=tiles is BY_TOKENS)

        def predicted(x: np.ndarray, terms: Callable[..., Any] = terms) -> np.ndarray:
            main, other = terms(x)
            seconds = main.spent(device, layers.shape, layers.load, item, resident=True).seconds
            if other is None:
                return seconds
            return np.where(tuned, seconds, other.spent(device, layers.shape, layers.load, item, resident=True).seconds)

        keys = names + ["tiles"] * len(first) + ((["bandwidth"] + ["tiles"] * len(tiles)) if apart else [])
        starts = [LIMITS[name][0] for name in names] + list(np.linspace(0.15, 0.6, len(first)))
        starts += [0.7, *np.linspace(0.15, 0.4, len(tiles))] if apart else []
        cost, x = _least(predicted, keys, starts, layers.seconds, used)
        if cost < best[0]:
            best = cost, (*terms(x), predicted(x))
    return best[1]


def fit_products(table: Frame, device: DeviceRates, item: float) -> tuple[ProductTerms, Pair]:
    m, n, k = (table[name].to_numpy(dtype=float) for name in "mnk")
    read, flops = (n * k + m * k + m * n) * item, 2 * m * n * k
    return _fit(ProductTerms, lambda terms: terms.spent(device, read, flops).seconds, table.seconds.to_numpy())


def fit_steps(table: Frame, device: DeviceRates, item: float) -> tuple[StepTerms, Pair]:
    queries = (table.batch_size * table.num_heads * table.head_dim * item).to_numpy(dtype=float)
    keys = (table.batch_size * table.num_key_value_heads * table.head_dim * item).to_numpy(dtype=float)
    cache = 2 * keys * (table.step + 1).to_numpy()
    return _fit(StepTerms, lambda terms: terms.spent(device, cache, 2 * queries).seconds, table.seconds.to_numpy())


def fit_prompts(table: Frame, device: DeviceRates, item: float) -> tuple[PromptTerms, Pair]:
    tokens = (table.batch_size * table.isl).to_numpy(dtype=float)
    flops = 4 * tokens * (table.num_heads * table.head_dim * (table.isl + 1) / 2).to_numpy()
    moved = tokens * ((2 * table.num_heads + 4 * table.num_key_value_heads) * table.head_dim).to_numpy() * item
    return _fit(PromptTerms, lambda terms: terms.spent(device, flops, moved).seconds, table.seconds.to_numpy())


def between(system: Mapping[str, Any], norms: int = 2) -> BetweenTerms:
    """Two norms with their residuals, which nobody measured: the package's own constants, four passes each."""
    gpu = system["gpu"]
    copies = 4 * norms / gpu["mem_bw_empirical_scaling_factor"]
    return BetweenTerms(fixed=norms * gpu["mem_empirical_constant_latency"], copies=copies)


def _fit(kind: type[T], predict: Callable[[Any], np.ndarray], seconds: np.ndarray) -> tuple[T, Pair]:
    names = [one.name for one in fields(kind)]  # type: ignore[arg-type]

    def predicted(x: np.ndarray) -> np.ndarray:
        return predict(kind(**dict(zip(names, map(float, x), strict=True))))

    _, x = _least(predicted, names, [LIMITS[name][0] for name in names], seconds, np.ones(len(seconds), bool))
    return kind(**dict(zip(names, map(float, x), strict=True))), (predicted(x), seconds)


def _least(
    predicted: Callable[[np.ndarray], np.ndarray],
    names: Sequence[str],
    starts: Sequence[float],
    seconds: np.ndarray,
    used: np.ndarray,
) -> tuple[float, np.ndarray]:
    low, high = np.log([LIMITS[name][1:] for name in names]).T

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.log(predicted(np.exp(x)) / seconds)[used]

    start = np.clip(np.log(starts), low + 1e-6, high - 1e-6)
    found = least_squares(residuals, start, loss="soft_l1", f_scale=0.1, bounds=(low, high))
    values = [float(f"{value:.4g}") for value in np.exp(found.x)]
    return float(found.cost), np.array(
        [
            0.0 if name in ADDED and value < 1.1 * LIMITS[name][1] else value
            for name, value in zip(names, values, strict=True)
        ]
    )
