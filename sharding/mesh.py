"""The mesh: how many devices work on each of three axes. Importing this module imports no JAX."""

import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from jax.sharding import AbstractMesh, Mesh

MeshAxis = Literal["data", "expert", "tensor"]
MeshAxes = tuple[MeshAxis, ...]

_SHORT: dict[str, MeshAxis] = {"tp": "tensor", "ep": "expert", "dp": "data"}  # as other systems call them
MESH_AXES: MeshAxes = get_args(MeshAxis)  # in the order of the device array, the last one nearest to each other
MAX_WRITTEN = 999_999_999  # devices along an axis that a text can ask for


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis. Written `data=1,expert=4,tensor=2`.

    data: the batch is split over it, weights are repeated.  expert: the experts are split over it.
    tensor: every expert's hidden axis is split over it.

    Sizes may be of any integer type, numpy's too.

    Raises:
        ValueError: for a size that is not a positive whole number.
    """

    data: int = 1
    expert: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for axis, size in self.shape.items():
            try:
                whole = 0 if isinstance(size, bool) else operator.index(size)
            except TypeError:
                whole = 0
            if whole < 1:
                raise ValueError(f"mesh axis {axis} must be a positive whole number, got {size!r}")
            object.__setattr__(self, axis, whole)  # the same mesh, whatever type it was given in

    @classmethod
    def parse(cls, text: str) -> "MeshConfig":
        """Reads `expert=4,tensor=2`, or `ep=4,tp=2`: axes in any order, those not named are 1.

        Raises:
            ValueError: for anything else.
        """
        sizes: dict[str, int] = {}
        for part in text.split(","):
            axis, equals, size = (word.strip() for word in part.partition("="))
            if not equals or not re.fullmatch(r"[0-9]+", size):
                raise ValueError(f'mesh must be written like "data=1,expert=4,tensor=2", got {text!r}')
            axis = _axis(axis, f"mesh {text!r}")
            if axis in sizes:
                raise ValueError(f"mesh {text!r} names the axis {axis!r} twice")
            if len(size.lstrip("0")) > len(str(MAX_WRITTEN)):  # before int(), which refuses thousands of digits
                raise ValueError(
                    f"mesh axis {axis} must be at most {MAX_WRITTEN:,} devices, got {size:.40}; use fewer devices"
                )
            sizes[axis] = int(size)
        return cls(**sizes)

    def __str__(self) -> str:
        return ",".join(f"{axis}={size}" for axis, size in self.shape.items())

    @property
    def shape(self) -> Mapping[str, int]:
        """Sizes by axis, in the order of the device array."""
        return {"data": self.data, "expert": self.expert, "tensor": self.tensor}

    @property
    def size(self) -> int:
        """Devices in all."""
        return math.prod(self.shape.values())

    def extent(self, axes: MeshAxes) -> int:
        """Devices along several axes together."""
        return math.prod(self.shape[axis] for axis in axes)

    def build(self, devices: Sequence[Any] | None = None) -> "Mesh":
        """The mesh over the first `size` of `devices` (all that JAX sees), as JAX orders them.

        Raises:
            ValueError: when there are fewer devices, or when some of several processes would have none.
        """
        import jax
        import numpy as np
        from jax.sharding import AxisType, Mesh

        available = list(jax.devices() if devices is None else devices)
        if self.size > len(available):
            seen = f"{len(available)} {available[0].platform} device{'s' if len(available) > 1 else ''}"
            raise ValueError(
                f"mesh {self} needs {self.size} devices, but there {'is' if len(available) == 1 else 'are'} {seen}; "
                f"use a smaller mesh, or simulated CPU devices: --simulate-devices {self.size}, in Python "
                f"jax.config.update('jax_num_cpu_devices', {self.size}) before the first use of JAX"
            )
        if jax.process_count() > 1 and len(available) == jax.device_count() and self.size != len(available):
            raise ValueError(
                f"mesh {self} takes {self.size} of the {len(available)} devices of {jax.process_count()} processes; "
                "with several processes it must take all of them"
            )
        array: Any = np.array(available[: self.size]).reshape(tuple(self.shape.values()))
        return Mesh(array, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))

    def abstract(self) -> "AbstractMesh":
        """The mesh without devices: programs can be traced and lowered for it, not compiled."""
        from jax.sharding import AbstractMesh, AxisType

        return AbstractMesh(tuple(self.shape.values()), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_config(mesh: "MeshConfig | str | Mapping[str, int] | Mesh | AbstractMesh | None") -> MeshConfig:
    """A mesh from any of the forms in which it can be given; None is one device. `dp`, `ep` and `tp` are axes, too.

    Of a `jax.sharding.Mesh` these are its sizes: `devices_of_mesh` has its devices.

    Raises:
        ValueError: for a string that is no mesh, an axis that there is not, or another type.
    """
    if mesh is None:
        return MeshConfig()
    if isinstance(mesh, str):
        return MeshConfig.parse(mesh)
    if isinstance(mesh, MeshConfig):
        return mesh
    sizes: Any = getattr(mesh, "shape", mesh) if hasattr(mesh, "axis_names") else mesh
    if isinstance(sizes, Mapping):
        where = f"mesh {dict(sizes)}"
        named = [(_axis(axis, where), size) for axis, size in sizes.items()]
        for axis in MESH_AXES:
            if sum(name == axis for name, _ in named) > 1:
                raise ValueError(f"{where} names the axis {axis!r} twice")
        return MeshConfig(**dict(named))
    raise ValueError(
        'mesh must be a MeshConfig, a string like "expert=4,tensor=2", a dict, a jax.sharding.Mesh or None, '
        f"got {mesh!r}"
    )


def devices_of_mesh(mesh: Any) -> list[Any] | None:
    """The devices of a `jax.sharding.Mesh`, in the order of `MESH_AXES`; None of any other form of a mesh.

    Raises:
        ValueError: for an axis that there is not.
    """
    devices = getattr(mesh, "devices", None)
    if devices is None or not hasattr(mesh, "axis_names"):
        return None
    mesh_config(mesh)
    names = [_SHORT.get(name, name) for name in mesh.axis_names]
    order = sorted(range(devices.ndim), key=lambda place: MESH_AXES.index(names[place]))
    return list(devices.transpose(order).flat)


def _axis(name: object, where: str) -> MeshAxis:
    """The axis that is called so. Raises ValueError where none is."""
    for axis in MESH_AXES:
        if name == axis or (isinstance(name, str) and _SHORT.get(name) == axis):
            return axis
    near = get_close_matches(str(name), MESH_AXES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{where}: unknown axis {name!r}, the axes are {', '.join(MESH_AXES)}{hint}")


def mesh_shapes(devices: int) -> Iterator[MeshConfig]:
    """Every way to arrange exactly `devices` devices, data first."""
    for data in _divisors(devices):
        for expert in _divisors(devices // data):
            yield MeshConfig(data=data, expert=expert, tensor=devices // data // expert)


def _divisors(number: int) -> list[int]:
    small = [i for i in range(1, math.isqrt(number) + 1) if number % i == 0]
    return small + [number // i for i in reversed(small) if i * i != number]
