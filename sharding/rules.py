"""Rules: which mesh axes each logical axis is split over, and the refusals. Imports no JAX."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from moejax._sharding.logical import LOGICAL_AXES, LogicalAxes, LogicalAxis, check_logical_axes
from moejax._sharding.mesh import MESH_AXES, MeshAxes, MeshConfig

if TYPE_CHECKING:
    from jax.sharding import PartitionSpec

Spec = tuple[MeshAxes, ...]  # per axis of an array, the mesh axes it is split over; () is whole on every device


@dataclass(frozen=True)
class Rules:
    """Which mesh axes every logical axis is split over, on one mesh; the first of several is the outermost.

    Mesh axes of size 1 split nothing: they are left out, so that a program for them has no collectives to remove.
    """

    mesh: MeshConfig
    table: tuple[tuple[LogicalAxis, MeshAxes], ...]

    @classmethod
    def of(cls, mesh: MeshConfig, **axes: MeshAxes) -> Self:
        """Rules from `experts=("expert",), ...`; a logical axis that is not named is not split.

        Raises:
            ValueError: for an unknown logical or mesh axis, or one named twice.
        """
        table: list[tuple[LogicalAxis, MeshAxes]] = []
        for logical in LOGICAL_AXES:
            over = axes.pop(logical, ())
            if unknown := [axis for axis in over if axis not in MESH_AXES]:
                raise ValueError(
                    f"rule for {logical}: unknown mesh axis {unknown[0]!r}, the axes are {', '.join(MESH_AXES)}"
                )
            if len(set(over)) != len(over):
                raise ValueError(f"rule for {logical}: a mesh axis is named twice in {over}")
            table.append((logical, tuple(axis for axis in over if mesh.shape[axis] > 1)))
        if axes:
            raise ValueError(f"unknown logical axis {next(iter(axes))!r}; the known ones are {', '.join(LOGICAL_AXES)}")
        return cls(mesh, tuple(table))

    def __getitem__(self, logical: LogicalAxis) -> MeshAxes:
        """Mesh axes of size above 1 that `logical` is split over."""
        return next(over for name, over in self.table if name == logical)

    def parts(self, logical: LogicalAxis) -> int:
        """How many parts `logical` is split into."""
        return self.mesh.extent(self[logical])

    def spec(self, axes: LogicalAxes) -> Spec:
        """Where an array with these logical axes lives.

        Raises:
            ValueError: when two of its axes would be split over one mesh axis.
        """
        spec = tuple(() if axis is None else self[axis] for axis in axes)
        taken: dict[str, LogicalAxis | None] = {}
        for axis, over in zip(axes, spec, strict=True):
            for mesh_axis in over:
                if mesh_axis in taken:
                    raise ValueError(
                        f"axes {taken[mesh_axis]} and {axis} of one array are both split over mesh axis {mesh_axis!r} "
                        f"of {self.mesh}"
                    )
                taken[mesh_axis] = axis
        return spec

    def local_shape(self, axes: LogicalAxes, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The part of an array of `shape` that one device holds.

        Raises:
            ValueError: when an axis does not divide, naming it, its size and the mesh.
        """
        check_logical_axes(axes, shape)
        for axis, size, over in zip(axes, shape, self.spec(axes), strict=True):
            if size % self.mesh.extent(over):
                raise ValueError(
                    f"axis {axis} of size {size} does not divide over mesh axis {' x '.join(over)} = "
                    f"{self.mesh.extent(over)} of {self.mesh}"
                )
        return tuple(size // self.mesh.extent(over) for size, over in zip(shape, self.spec(axes), strict=True))


def partition_spec(spec: Spec) -> "PartitionSpec":
    """The same in JAX's words."""
    from jax.sharding import PartitionSpec

    return PartitionSpec(*(over if len(over) > 1 else over[0] if over else None for over in spec))
