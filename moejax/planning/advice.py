"""What to ask for instead, where no split of a model fits. Imports no JAX."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from moejax._sharding.collectives.collective import ITEM_SIZES
from moejax.moe.split import make_rules
from moejax.planning.compare import ComparisonInputs
from moejax.planning.footprint import footprint
from moejax.planning.hardware import DTYPES, Hardware
from moejax.planning.hardware_file import load_hardware, shipped_hardware
from moejax.planning.rows import MeshRow
from moejax.planning.splits import splits
from moejax.planning.workload import Workload

MOST_DEVICES = 1024  # where the search for enough devices ends


def nearest(rows: Sequence[MeshRow]) -> MeshRow | None:
    """Picks, from rows that do not fit, the one that lacks least; None where the model can be split over no mesh."""
    return min((row for row in rows if row.footprint is not None), key=lambda row: row.over_bytes, default=None)


def what_fits(plan: ComparisonInputs, devices: int, dispatch: str, rows: Sequence[MeshRow]) -> list[str]:
    """Flags of `moejax mesh compare`, each of which alone makes the model fit that fits in none of `rows`: a smaller
    batch, a smaller dtype, more devices, larger devices. Empty where none of them is enough.
    """
    workload = min((row.workload for row in rows), key=lambda work: work.batch_size)
    largest = max(row.largest_batch or 0 for row in rows)
    kinds = (
        [(f"--batch-size {largest}", plan, devices, replace(workload, batch_size=largest))] if largest else [],
        [(f"--dtype {name}", plan, devices, replace(workload, dtype=name)) for name in _smaller(plan, workload.dtype)],
        [(f"--devices {count}", plan, count, workload) for count in _more_devices(plan.hardware, devices)],
        [(f"--hardware {one.name}", replace(plan, hardware=one), devices, workload) for one in _larger(plan, workload)],
    )
    enough = (
        next((flag for flag, changed, count, work in kind if _fits(changed, count, dispatch, work)), None)
        for kind in kinds
    )
    return [flag for flag in enough if flag is not None]


def _smaller(plan: ComparisonInputs, dtype: str) -> list[str]:
    """Dtypes of fewer bytes in which the devices compute."""
    rates = plan.hardware.matrix_rate
    return [name for name in DTYPES if name in rates and ITEM_SIZES[name] < ITEM_SIZES[dtype]]


def _more_devices(hardware: Hardware, devices: int) -> Iterator[int]:
    """Twice as many, four times, ...: as many as the hardware file says how to connect."""
    most = MOST_DEVICES if hardware.network else hardware.devices_per_node if hardware.link else 1
    while (devices := 2 * devices) <= most:
        yield devices


def _larger(plan: ComparisonInputs, workload: Workload) -> list[Hardware]:
    """The accelerators that moejax has figures of, with more memory, that compute in the dtype: the smallest first."""
    known = sorted(map(load_hardware, shipped_hardware()), key=lambda hardware: hardware.memory_bytes)
    return [
        hardware
        for hardware in known
        if hardware.memory_bytes > plan.hardware.memory_bytes
        and workload.dtype in hardware.matrix_rate
        and hardware.name != "cpu"
    ]


def _fits(plan: ComparisonInputs, devices: int, dispatch: str, workload: Workload) -> bool:
    return any(
        footprint(plan.config, make_rules(plan.config, split.mesh, split.dispatch), workload).total <= plan.usable_bytes
        for split, why_not in splits(plan.config, devices, dispatch)
        if why_not is None
    )
