"""Where every array lives: its split, bytes on each device, and over which mesh axes it is repeated. Imports no JAX."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from moejax._sharding.logical import LogicalAxes
from moejax._sharding.mesh import MESH_AXES, MeshAxes
from moejax._sharding.rules import Rules, Spec


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where one array lives.

    axes: its logical axes.  spec: the mesh axes each of them is split over.  local_shape: what one device holds.
    bytes_total: of the whole array.  bytes_per_device: of one device's part.
    replicated_over: mesh axes of size above 1 along which devices hold the same part.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: LogicalAxes
    spec: Spec
    local_shape: tuple[int, ...]
    bytes_total: int
    bytes_per_device: int
    replicated_over: MeshAxes


def placement(
    path: str, shape: tuple[int, ...], dtype: str, itemsize: int, axes: LogicalAxes, rules: Rules
) -> Placement:
    """Where the array `path` of `shape` lives under `rules`.

    Raises:
        ValueError: when it does not divide, naming the array, the axis, its size and the mesh.
    """
    try:
        local_shape = rules.local_shape(axes, shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    spec = rules.spec(axes)
    split = {axis for over in spec for axis in over}
    return Placement(
        path=path,
        shape=shape,
        dtype=dtype,
        axes=axes,
        spec=spec,
        local_shape=local_shape,
        bytes_total=math.prod(shape) * itemsize,
        bytes_per_device=math.prod(local_shape) * itemsize,
        replicated_over=tuple(axis for axis in MESH_AXES if rules.mesh.shape[axis] > 1 and axis not in split),
    )


def bytes_per_device(placements: Iterable[Placement]) -> int:
    """Bytes that every device holds of all these arrays: the same on each, since nothing is split unevenly."""
    return sum(one.bytes_per_device for one in placements)


def describe(spec: Spec) -> str:
    """A spec as people write it: `[expert, tensor, -]`, several mesh axes on one array axis joined by `+`."""
    return "[" + ", ".join("+".join(over) or "-" for over in spec) + "]"
