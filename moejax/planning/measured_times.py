"""Seconds of layers as the tables of aiconfigurator-core have them, between their points on straight lines. No JAX.

What the tables lack stays fitted, and each predicted call says which parts were measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from moejax.planning.hardware import Hardware
from moejax.planning.kernels import curve_seconds
from moejax.planning.loads import Balanced, PowerLaw
from moejax.planning.routing import RoutingModel
from moejax.planning.silicon import DTYPES, MOE_KEYS, SYSTEMS, SiliconTables, fastest

Points = Mapping[int, float]  # seconds by what they are measured at


class Looked(NamedTuple):
    """What tables say: seconds, and how many times outside of what was measured they are asked for; 1 inside."""

    seconds: float
    beyond: float = 1.0


@dataclass(frozen=True)
class MeasuredTimes:
    """The tables of one engine on one kind of device, in one dtype and under one load.

    dtype, distribution: as the tables call them.
    """

    tables: SiliconTables
    dtype: str
    distribution: str

    @classmethod
    def of(cls, hardware: Hardware, software: str, dtype: str, routing: RoutingModel) -> "MeasuredTimes":
        """The tables of `software` on `hardware`.

        Raises:
            ValueError: where nothing was measured: hardware, software, dtype or load; when the package is missing.
        """
        if hardware.name not in SYSTEMS:
            raise ValueError(f"times=measured: no tables of {hardware.name}; there are {', '.join(SYSTEMS)}")
        if software not in hardware.software or software == "moejax":
            raise ValueError(f"times=measured: {software} was not measured; use software=vllm, trtllm or sglang")
        if dtype not in DTYPES:
            raise ValueError(f"times=measured: nothing was measured in {dtype}; use dtype=bfloat16")
        tables = SiliconTables(system=SYSTEMS[hardware.name], engine=software)
        found = cls(tables, DTYPES[dtype], _distribution(routing))
        known = _loads(found.tables, found.dtype)
        if found.distribution not in known:
            usable = ", ".join(f"skew={_skew(one)}" for one in known)
            raise ValueError(
                f"times=measured: {software} on {hardware.name} was measured under {usable}; give one of them"
            )
        return found

    def expert_layer(
        self, *, inputs: int, width: int, chosen: int, experts: int, tensor: int, parts: int, tokens: int
    ) -> Looked | None:
        """One layer of `experts` in all, split over `parts` and `tensor`; None where no table has the shape.

        Beyond the most tokens that were measured, in proportion.
        """
        key = (inputs, width, chosen, experts, tensor, parts)
        points = _experts(self.tables, self.dtype, self.distribution).get(key)
        return None if points is None else _between(points, tokens)

    def step(self, *, heads: int, kv_heads: int, head_dim: int, sequences: int, positions: int) -> Looked | None:
        """One layer's attention of a decode step."""
        grid = _attention(self.tables, "generation_attention", "step").get((heads, kv_heads, head_dim))
        return None if grid is None else _between_both(grid, sequences, positions)

    def prompt(self, *, heads: int, kv_heads: int, head_dim: int, sequences: int, length: int) -> Looked | None:
        """One layer's attention of whole prompts."""
        grid = _attention(self.tables, "context_attention", "isl").get((heads, kv_heads, head_dim))
        return None if grid is None else _between_both(grid, sequences, length)


def _distribution(routing: RoutingModel) -> str:
    """What the tables call it; nothing was measured under shares of experts, recorded or by a law."""
    if isinstance(routing.load, PowerLaw):
        return f"power_law_{routing.load.alpha:g}"
    if isinstance(routing.load, Balanced):
        return "balanced"
    return "uniform" if routing.shares is None else "shares"


def _skew(distribution: str) -> str:
    return distribution.replace("power_law_", "power-law:")


@lru_cache(maxsize=32)
def _loads(tables: SiliconTables, dtype: str) -> list[str]:
    moe = tables.read("moe")
    return sorted(moe[moe.moe_dtype == dtype].distribution.unique())


@lru_cache(maxsize=16)
def _experts(tables: SiliconTables, dtype: str, distribution: str) -> dict[tuple[int, ...], Points]:
    moe = tables.read("moe")
    rows = fastest(moe[(moe.moe_dtype == dtype) & (moe.distribution == distribution)], MOE_KEYS)
    found: dict[tuple[int, ...], dict[int, float]] = {}
    for row in rows.itertuples():
        key = (row.hidden_size, row.inter_size, row.topk, row.num_experts, row.moe_tp_size, row.moe_ep_size)
        found.setdefault(key, {})[row.num_tokens] = row.seconds
    return found  # type: ignore[return-value]


@lru_cache(maxsize=16)
def _attention(
    tables: SiliconTables, name: str, length: str
) -> dict[tuple[int, int, int], dict[int, dict[int, float]]]:
    table = tables.read(name)
    usual = (table.attn_dtype == "bfloat16") & (table.kv_cache_dtype == "bfloat16")
    if "window_size" in table:
        usual &= table.window_size == 0
    keys = ["num_heads", "num_key_value_heads", "head_dim", "batch_size", length]
    found: dict[tuple[int, int, int], dict[int, dict[int, float]]] = {}
    for heads, kv_heads, head_dim, batch, at, seconds in fastest(table[usual], keys).itertuples(index=False):
        found.setdefault((heads, kv_heads, head_dim), {}).setdefault(batch, {})[at] = seconds
    return found


def _between_both(grid: Mapping[int, Points], first: float, second: float) -> Looked:
    inner = {at: _between(points, second) for at, points in grid.items()}
    outer = _between({at: one.seconds for at, one in inner.items()}, first)
    return Looked(outer.seconds, max(outer.beyond, *(one.beyond for one in inner.values())))


def _between(points: Points, at: float) -> Looked:
    """On the curve of the points, and beyond the last in proportion."""
    return Looked(curve_seconds(points, at), max(1.0, min(points) / at, at / max(points)))
