"""Seconds of collectives: as a library was measured within a node, else rings over links. Imports no JAX.

docs/performance-model.md has every formula of this file with its source.
"""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from moejax._sharding import MESH_AXES, MeshConfig
from moejax._sharding.collectives import Collective, wire_elements
from moejax._sharding.collectives.collective import ITEM_SIZES
from moejax.planning import coefficients
from moejax.planning.hardware import Hardware, Link


def exchange_seconds(
    collectives: Iterable[Collective], mesh: MeshConfig, hardware: Hardware, software: str = "ideal"
) -> tuple[float, float]:
    """Seconds that all of them take: what their size does not change, and what it does."""
    latency = bandwidth = 0.0
    for one, count in Counter(collectives).items():
        fixed, rest = _measured(one, mesh, hardware, software) or _ring(one, mesh, hardware)
        latency += count * fixed
        bandwidth += count * rest
    return latency, bandwidth


def _ring(one: Collective, mesh: MeshConfig, hardware: Hardware) -> tuple[float, float]:
    link = link_of(one.axes, mesh, hardware)
    group = mesh.extent(one.axes)  # type: ignore[arg-type]
    rounds = coefficients.COST.all_reduce_rounds if one.kind == "all-reduce" else coefficients.COST.other_rounds
    wire = float(wire_elements(one, mesh.shape)) * ITEM_SIZES[one.dtype]
    return link.launch + rounds * (group - 1) * link.latency, wire / link.bandwidth


def _measured(one: Collective, mesh: MeshConfig, hardware: Hardware, software: str) -> tuple[float, float] | None:
    """What was measured of the library that `software` calls; None between nodes and where nothing was."""
    if software not in hardware.software or crosses(one.axes, mesh, hardware.devices_per_node):
        return None
    called = hardware.software[software]
    library = called.all_reduce if one.kind == "all-reduce" else called.collectives
    group = mesh.extent(one.axes)  # type: ignore[arg-type]
    size = one.elements * ITEM_SIZES[one.dtype]
    seconds = hardware.collective_seconds(library, one.kind, group, size)
    least = hardware.collective_seconds(library, one.kind, group, 1)
    return None if seconds is None or least is None else (min(least, seconds), max(0.0, seconds - least))


@lru_cache(maxsize=4096)
def crosses(axes: tuple[str, ...], mesh: MeshConfig, per_node: int) -> bool:
    """Whether some group of devices along `axes` has members in several nodes, the devices being numbered as the mesh
    orders them: tensor neighbours next to each other, data farthest apart.
    """
    if mesh.size <= per_node:
        return False
    strides, stride = {}, 1
    for axis in reversed(MESH_AXES):
        strides[axis] = stride
        stride *= mesh.shape[axis]
    members = [0]
    for axis in axes:
        members = [m + i * strides[axis] for m in members for i in range(mesh.shape[axis])]
    rest = [0]
    for axis in MESH_AXES:
        if axis not in axes:
            rest = [r + i * strides[axis] for r in rest for i in range(mesh.shape[axis])]
    return any(len({(start + member) // per_node for member in members}) > 1 for start in rest)


def link_of(axes: tuple[str, ...], mesh: MeshConfig, hardware: Hardware) -> Link:
    """What connects the devices along `axes`: a ring is as slow as its slowest link, so the network if it is in one.

    Raises:
        ValueError: when the hardware file says nothing about the link, or about the network between their nodes.
    """
    if hardware.link is None:
        raise ValueError(
            f"hardware {hardware.name} has no [link]: {mesh.size} devices need one; add it to the file, or "
            "measure it where there are several: moejax mesh calibrate"
        )
    if not crosses(axes, mesh, hardware.devices_per_node):
        return hardware.link
    if hardware.network is None:
        raise ValueError(
            f"hardware {hardware.name} has {hardware.devices_per_node} devices in a node and no [network]: "
            f"{mesh.size} devices need one; add it to a file of your own, or raise devices_per_node"
        )
    return hardware.network
