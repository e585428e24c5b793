"""What `moejax mesh show` prints: every parameter and cache of a model on one mesh. Imports no JAX."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from moejax.declarations import cache_placements, declared_placement, model_params
from moejax.decoding.buckets import batch_bucket
from moejax.dtypes import resolve_dtype
from moejax.layout import Split, make_rules, resolve_split
from moejax.planning.calls import cache_slots
from moejax.planning.models import model_config
from moejax.planning.workload import Workload
from sharding import Placement, bytes_per_device


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where every array is, and of how many rows the cache is (padding included)."""

    split: Split
    rows: int
    params: list[Placement]
    cache: list[Placement]

    def as_json(self) -> dict[str, Any]:
        return {
            "mesh": dict(self.split.mesh.shape),
            "dispatch": self.split.dispatch,
            "cache_rows": self.rows,
            "weight_bytes_per_device": bytes_per_device(self.params),
            "cache_bytes_per_device": bytes_per_device(self.cache),
            "arrays": [asdict(one) for one in (*self.params, *self.cache)],
        }


def placed(model: str, mesh: str, dispatch: str, workload: Workload) -> Placed:
    """Every parameter, experts stacked, and every cache.

    Raises:
        ValueError: for a model, mesh or dispatch that does not exist or does not divide.
    """
    config = model_config(model)
    workload = replace(workload, dtype=resolve_dtype(workload.dtype, auto="bfloat16"))
    workload.check(config)
    split = resolve_split(config, mesh, dispatch)
    rules = make_rules(config, split.mesh, split.dispatch)
    rows = batch_bucket(workload.batch_size, rules.parts("batch"))
    return Placed(
        split=split,
        rows=rows,
        params=[
            declared_placement(path, one, workload.dtype, rules)
            for path, one in model_params(config, "stacked", 1).items()
        ],
        cache=cache_placements(config, rules, rows, cache_slots(workload), workload.dtype),
    )


def show_tables(found: Placed) -> Iterator[RenderableType]:
    """A line for arrays that are alike but for their layer, then the sums."""
    yield Text(f"{found.split.mesh}, dispatch {found.split.dispatch}", style="bold")
    if found.split.remark:
        yield Text(found.split.remark)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    for name in ("array", "axes, and what each is split over", "MB/device", "repeated along"):
        justify = "right" if name == "MB/device" else "left"
        table.add_column(Text(name), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for name, one, count in _alike([*found.params, *found.cache]):
        size = f"{one.bytes_per_device / 1e6:,.2f}" + (f" x {count}" if count > 1 else "")
        table.add_row(name, _split(one), size, ", ".join(one.replicated_over) or "-")
    yield table
    weights, cache = bytes_per_device(found.params), bytes_per_device(found.cache)
    yield Text(
        f"per device: weights {weights / 1e9:.2f} GB, cache of {found.rows} rows {cache / 1e9:.2f} GB, "
        f"together {(weights + cache) / 1e9:.2f} GB"
    )


def _alike(placements: list[Placement]) -> list[tuple[str, Placement, int]]:
    """Arrays with their layer's number left out: name, one of them, how many there are."""
    groups: dict[str, list[Placement]] = {}
    for one in placements:
        name = re.sub(r"^(layers|cache)\.\d+\.", r"\1.*.", one.path).replace(".stacked.", ".")
        groups.setdefault(name, []).append(one)
    return [(name, group[0], len(group)) for name, group in groups.items()]


def _split(one: Placement) -> str:
    """`experts 8/expert, mlp 14336/tensor, embed 4096`: each axis, its size, and the mesh axes it is split over."""
    return ", ".join(
        f"{axis or 'whole'} {size}" + (f"/{'+'.join(over)}" if over else "")
        for axis, size, over in zip(one.axes, one.shape, one.spec, strict=True)
    )
