"""The split that `mesh="auto"` stands for: the one that a comparison for the devices JAX sees ranks first."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moejax.families.config import ModelConfig
from moejax.moe.split import Split, dispatch_name, resolve_split
from moejax.planning.compare import compare_meshes
from moejax.planning.hardware import Hardware
from moejax.planning.hardware_file import load_hardware, shipped_hardware
from moejax.planning.question import USABLE
from moejax.planning.ranking import best
from moejax.planning.reasons import reason
from moejax.planning.rows import MeshRow
from moejax.planning.splits import EVERY_DISPATCH
from moejax.planning.workload import CONTEXT, INPUT_LEN
from moejax.weights.dtypes import resolve_dtype

AUTO = "auto"
ASSUMED = {"gpu": "h100-sxm"}  # by JAX's platform: whose figures rank splits of a device that no file knows; else cpu


def auto_split(
    config: ModelConfig, dtype: str, max_seq_len: int, dispatch: str, devices: Sequence[Any], *, batch_size: int = 1
) -> Split:
    """The split over all of `devices` with the shortest decode step of `batch_size` sequences; `remark` says why.

    Only splits with the dispatch that was named are ranked: for one that moves tokens between experts, those with
    several devices along expert, unless there is but one device.

    Raises:
        ValueError: for an unknown dispatch, or when no split fits, with the GB that are missing.
    """
    if dispatch != AUTO:
        dispatch_name(dispatch)
    hardware, assumed = visible_hardware(devices)
    if dtype not in hardware.matrix_rate:  # the device computes in it at some speed, or JAX would have said so
        slowest = min(hardware.matrix_rate.values())
        hardware = replace(hardware, matrix_rate={**hardware.matrix_rate, dtype: slowest})
    context = min(CONTEXT, max_seq_len)  # tokens that one sequence is assumed to have
    rows = compare_meshes(
        config,
        len(devices),
        hardware,
        batch_size=batch_size,
        input_len=min(INPUT_LEN, context),
        context=context,
        dtype=dtype,
        dispatch=EVERY_DISPATCH if dispatch == AUTO else dispatch,
        usable_fraction=USABLE if devices[0].platform == "cpu" else 1.0,  # of a GPU, JAX has set some aside already
    )
    if dispatch not in (AUTO, "replicated") and len(devices) > 1:
        rows = [row for row in rows if row.split.mesh.expert > 1]
    winner = best(rows, "latency")
    if winner is None:
        raise ValueError(_nothing_fits(rows, hardware, len(devices)))
    split = winner.split if dispatch == AUTO else replace(winner.split, dispatch=dispatch_name(dispatch))
    if len(devices) == 1:
        why = "there is one device"
    else:
        sequences = "one sequence" if batch_size == 1 else f"{batch_size} sequences at a time, each"
        why = f"it {reason(winner, rows, 'latency')}, predicted for {sequences} of {context:,} tokens"
    remark = f"mesh auto is {split.mesh}, dispatch {split.dispatch}: {why}; {assumed}"
    return replace(split, remark=remark)


def check_split(config: ModelConfig, mesh: str | None, dispatch: str) -> None:
    """Tells a mistake in what `asked_split` will be asked for before JAX starts, as far as that is possible.

    Raises:
        ValueError: as `resolve_split`.
    """
    if mesh != AUTO:
        resolve_split(config, mesh, dispatch)
    elif dispatch != AUTO:
        dispatch_name(dispatch)


def asked_split(
    config: ModelConfig,
    mesh: str | None,
    dispatch: str,
    *,
    dtype: str,
    stored: str,
    max_seq_len: int,
    batch_size: int = 1,
) -> Split:
    """The split that a command was asked for, "auto" among them; to be called when JAX has started.

    batch_size: sequences that the command decodes at a time, as far as it knows.

    Raises:
        ValueError: as `auto_split` or `resolve_split`, and for an unknown dtype; `stored` is what "auto" means there.
    """
    if mesh != AUTO:
        return resolve_split(config, mesh, dispatch)
    import jax

    resolved = resolve_dtype(dtype, auto=stored)
    return auto_split(config, resolved, max_seq_len, dispatch, jax.devices(), batch_size=batch_size)


def visible_hardware(devices: Sequence[Any]) -> tuple[Hardware, str]:
    """The figures of the device kind, with the memory that is really there, and whose figures they are."""
    from moejax._sharding import device_memory

    kind = devices[0].device_kind
    known = [hardware for hardware in map(load_hardware, shipped_hardware()) if kind.lower() in hardware.kinds]
    hardware = known[0] if known else load_hardware(ASSUMED.get(devices[0].platform, "cpu"))
    said = f"figures of {hardware.name}"
    if not known:
        said = f"no hardware file knows {kind!r}, assumed {said}: `moejax mesh compare` takes a file of your own"
    memory = device_memory(devices).total_bytes
    return replace(hardware, memory_bytes=memory, devices_per_node=_devices_per_node(devices, hardware)), said


def _devices_per_node(devices: Sequence[Any], hardware: Hardware) -> int:
    """As many as one process has: where several processes share a node this takes their links for slower than they are,
    and never the other way round. Without figures of a network, all devices are taken to be in one node.
    """
    of_one_process = sum(device.process_index == devices[0].process_index for device in devices)
    return len(devices) if hardware.network is None else of_one_process


def _nothing_fits(rows: Sequence[MeshRow], hardware: Hardware, devices: int) -> str:
    split = [row for row in rows if row.footprint is not None]
    if not split:
        return f"mesh auto: {rows[0].why_not}"
    nearest = min(split, key=lambda row: row.over_bytes)
    number = "one device" if devices == 1 else f"{devices} devices"
    return (
        f"mesh auto: no split of this model over {number} ({hardware.title}) fits; the nearest, {nearest.label}, "
        f"{(nearest.why_not or '').removeprefix('does not fit: ')}; use more devices, or devices with more memory"
    )
