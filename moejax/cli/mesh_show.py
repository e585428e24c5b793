"""What `moejax mesh show` prints: every parameter and cache of a model on one mesh. Imports no JAX."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from moejax._sharding import Placement, bytes_per_device
from moejax.families.kv_cache import cache_placements
from moejax.families.table import weights_of
from moejax.moe.split import Split, make_rules, resolve_split
from moejax.planning.calls import cache_positions
from moejax.planning.models import model_config, stored_dtype
from moejax.planning.units import BYTES, amount, common_unit, number
from moejax.planning.workload import Workload, default_lengths
from moejax.runtime.buckets import batch_bucket
from moejax.weights.counts import weight_placements
from moejax.weights.dtypes import resolve_dtype


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where every array is, of how many sequences and tokens of each the cache is, and of how many with padding."""

    model: str
    split: Split
    dtype: str
    batch_size: int
    context: int
    sequences: int
    params: list[Placement]
    cache: list[Placement]

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "dtype": self.dtype,
            "context": self.context,
            "mesh": dict(self.split.mesh.shape),
            "dispatch": self.split.dispatch,
            "batch_size": self.batch_size,
            "cache_rows": self.sequences,
            "weight_bytes_per_device": bytes_per_device(self.params),
            "cache_bytes_per_device": bytes_per_device(self.cache),
            "arrays": [asdict(one) for one in (*self.params, *self.cache)],
        }


def placed(model: str, mesh: str, dispatch: str, *, dtype: str, batch_size: int, context: int | None) -> Placed:
    """Every parameter, experts stacked, and every cache.

    Raises:
        ValueError: for a model, mesh or dispatch that does not exist or does not divide.
    """
    config = model_config(model)
    _, cached = default_lengths(config, 1, context)
    name = resolve_dtype(dtype, auto=stored_dtype(model))
    workload = Workload(batch_size=batch_size, input_len=1, context=cached, dtype=name)
    workload.check(config)
    split = resolve_split(config, mesh, dispatch)
    rules = make_rules(config, split.mesh, split.dispatch)
    sequences = batch_bucket(workload.batch_size, rules.parts("batch"))
    return Placed(
        model=model,
        dtype=name,
        context=cached,
        split=split,
        batch_size=batch_size,
        sequences=sequences,
        params=weight_placements(weights_of(config), rules, workload.dtype),
        cache=cache_placements(config, rules, sequences, cache_positions(workload), workload.dtype),
    )


def show_tables(found: Placed) -> Iterator[RenderableType]:
    """A line for arrays that are alike but for their layer, then the sums."""
    yield Text(f"{found.split.mesh}, dispatch {found.split.dispatch}", style="bold")
    if found.split.remark:
        yield Text(found.split.remark)
    alike = _alike([*found.params, *found.cache])
    unit = common_unit((one.bytes_per_device for _, one, _ in alike if "norm" not in one.path), BYTES)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    for name in ("array", "axes, and what each is split over", f"{unit.name}/device", "repeated along"):
        justify = "right" if name.endswith("/device") else "left"
        table.add_column(Text(name), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for name, one, count in alike:
        size = number(one.bytes_per_device / unit.scale) + (f" x {count}" if count > 1 else "")
        table.add_row(name, _split(one), size, ", ".join(one.replicated_over) or "-")
    yield table
    weights, cache = bytes_per_device(found.params), bytes_per_device(found.cache)
    sequences = "1 sequence" if found.sequences == 1 else f"{found.sequences:,} sequences"
    yield Text(
        f"per device: weights {amount(weights, BYTES)}, cache of {sequences} {amount(cache, BYTES)}, "
        f"together {amount(weights + cache, BYTES)}"
    )
    if found.sequences != found.batch_size:
        yield Text(
            f"padded: --batch-size {found.batch_size:,} takes {found.sequences:,} sequences, {_why_padded(found)}"
        )


def _why_padded(found: Placed) -> str:
    """The engine's rule for the size of a batch, as far as it changed this one."""
    over = next(one for axis, one in zip(found.cache[0].axes, found.cache[0].spec, strict=True) if axis == "batch")
    if found.split.mesh.extent(over) == 1:
        return "the next power of two"
    parts = found.split.mesh.extent(over)
    return f"the next power of two, rounded up to a multiple of {' x '.join(over)} = {parts}"


def _alike(placements: list[Placement]) -> list[tuple[str, Placement, int]]:
    """Arrays with their layer's number left out: name, one of them, how many there are."""
    groups: dict[str, list[Placement]] = {}
    for one in placements:
        name = re.sub(r"^(layers|cache)\.\d+\.", r"\1.*.", one.path)
        groups.setdefault(name, []).append(one)
    return [(name, group[0], len(group)) for name, group in groups.items()]


def _split(one: Placement) -> str:
    """`experts 8/expert, mlp 14336/tensor, embed 4096`: each axis, its size, and the mesh axes it is split over."""
    return ", ".join(
        f"{axis or 'whole'} {size}" + (f"/{'+'.join(over)}" if over else "")
        for axis, size, over in zip(one.axes, one.shape, one.spec, strict=True)
    )
