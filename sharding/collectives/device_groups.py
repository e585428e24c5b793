"""Which devices take part in a collective, from the spellings of HLO and StableHLO, and over which mesh axes they run.

A device is its position in the mesh, in row-major order: the partition ids of a program are positions too.
"""

import ast
import math
import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

Groups = list[list[int]]

_INTS = r"[\d,]+"
_IOTA = re.compile(rf"\[({_INTS})\](?:T\(({_INTS})\))?")
_TILED_IOTA = re.compile(rf"\[({_INTS})\]<=(\[{_INTS}\](?:T\({_INTS}\))?)")
_MESH = re.compile(r"mesh\[([^\]]*)\](?:, device_ids=\((\[[^)]*\](?:T\([^)]*\))?|[^)]*)\))? \{([^}]*)\}")
_STABLEHLO_MESH = re.compile(r"#stablehlo\.replica_group_mesh_axes<mesh = @([^,]*), axes = \[(.*)\]>")
_AXIS = re.compile(r"(?:'([^']*)'|([\w.]+))(?::\((\d+)\)(\d+))?")


def hlo_groups(spelling: str, devices: int) -> Groups:
    """The groups of devices that `spelling` means in HLO, of a program over `devices` devices.

    It may be a list `{{0,1},{2,3}}`; `{}`, all devices; an iota `[2,4]<=[8]` or a transposed one `[4,2]<=[2,4]T(1,0)`;
    or axes of a mesh with XLA's own names, `mesh['a'=2,'b'=4] {'b'}`, of parts of axes, `mesh['a'=8] {'a':(2)4}`, and
    with a device order, `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`.

    Raises:
        ValueError: for any other spelling.
    """
    if spelling == "{}":
        return [list(range(devices))]
    if re.fullmatch(r"\{(?:\{[\d,]+\},?)+\}", spelling):
        return ast.literal_eval(spelling.translate(str.maketrans("{}", "[]")))
    if match := _TILED_IOTA.fullmatch(spelling):
        return _iota(match[2]).reshape(_ints(match[1])).tolist()
    if match := _MESH.fullmatch(spelling):
        return _mesh_groups(*match.groups())
    raise ValueError(
        f"replica groups spelled {spelling!r}; expected a list, an iota or mesh axes: teach hlo_groups this spelling"
    )


def stablehlo_groups(spelling: str, meshes: Mapping[str, str]) -> Groups:
    """The groups of devices that an attribute means in StableHLO: `dense<...>`, or axes of a mesh of the program, as
    JAX 0.11 writes them.

    meshes: what the program says of each mesh after its name, `["data"=2, "tensor"=4]`.

    Raises:
        ValueError: for any other spelling, for parts of axes, and for devices in an order of their own.
    """
    match = _STABLEHLO_MESH.fullmatch(spelling)
    if match is None:
        return dense_groups(spelling)
    sizes = re.fullmatch(r'\[((?:"[^"]*"=\d+(?:, )?)+)\]', meshes.get(match[1], ""))
    axes = re.fullmatch(r'(?:#stablehlo\.axis_ref<name = "[^"]*">(?:, )?)*', match[2])
    if sizes is None or axes is None:
        raise ValueError(
            f"groups of devices spelled {spelling!r}, with the mesh {meshes.get(match[1])!r}; expected whole axes of a "
            "mesh whose devices are in order"
        )
    names = re.findall(r'name = "([^"]*)"', match[2])
    return _mesh_groups(sizes[1].replace('"', "").replace(" ", ""), None, ",".join(f"'{name}'" for name in names))


def dense_groups(spelling: str) -> Groups:
    """The rows of a StableHLO attribute `dense<[[0, 1], [2, 3]]> : tensor<2x2xi64>`: groups, or pairs.

    MLIR prints more than 100 numbers as one hexadecimal string, and equal ones as a single number.

    Raises:
        ValueError: for any other spelling.
    """
    match = re.fullmatch(r'dense<(?:"0x([0-9A-F]*)"|([^">]*))> : tensor<(\d+)x(\d+)xi64>', spelling)
    if match is None:
        raise ValueError(
            f"groups of devices spelled {spelling!r}; expected dense<...> : tensor<NxMxi64> or axes of a mesh"
        )
    shape = (int(match[3]), int(match[4]))
    if match[1]:
        return np.frombuffer(bytes.fromhex(match[1]), "<i8").reshape(shape).tolist()
    if not match[2]:
        return []
    return np.broadcast_to(ast.literal_eval(match[2]), shape).tolist()


def axes_of_groups(groups: Groups, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes whose product the groups are, in the order of the mesh; () for groups of a single device.

    Raises:
        ValueError: when the groups do not hold every device of the mesh once, or are no product of mesh axes.
    """
    shape = tuple(mesh_shape.values())
    if sorted(device for group in groups for device in group) != list(range(math.prod(shape))):
        raise ValueError(
            f"device groups {groups} do not hold each of the {math.prod(shape)} devices of mesh {dict(mesh_shape)} "
            "once: pass the mesh that the program was compiled for"
        )
    first = np.array(np.unravel_index(groups[0], shape))
    varying = [axis for axis in range(len(shape)) if len(set(first[axis])) > 1]
    devices = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), varying, range(-len(varying), 0))
    product = devices.reshape(-1, math.prod(shape[axis] for axis in varying))
    if {frozenset(group) for group in groups} != {frozenset(group) for group in product.tolist()}:
        raise ValueError(
            f"device groups {groups} are no product of axes of mesh {dict(mesh_shape)}: count them by hand"
        )
    return tuple(name for axis, name in enumerate(mesh_shape) if axis in varying)


def axes_of_pairs(pairs: Groups, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which some (source, target) pair moves; () when every device keeps what it has.

    Raises:
        ValueError: for a device that is not in the mesh.
    """
    shape = tuple(mesh_shape.values())
    if outside := [device for pair in pairs for device in pair if device >= math.prod(shape)]:
        raise ValueError(
            f"a permutation names device {outside[0]}, mesh {dict(mesh_shape)} has {math.prod(shape)}: "
            "pass the mesh that the program was compiled for"
        )
    coordinates = [np.unravel_index(pair, shape) for pair in pairs]
    return tuple(name for axis, name in enumerate(mesh_shape) if any(at[axis][0] != at[axis][1] for at in coordinates))


def _iota(spelling: str) -> Int[np.ndarray, "..."]:
    """`[4,2]T(1,0)`: the numbers from 0 in this shape, transposed."""
    match = _IOTA.fullmatch(spelling)
    assert match, spelling
    numbers = np.arange(math.prod(_ints(match[1]))).reshape(_ints(match[1]))
    return numbers.transpose(_ints(match[2])) if match[2] else numbers


def _mesh_groups(sizes: str, device_ids: str | None, axes: str) -> Groups:
    """Groups along `axes` of a mesh of XLA's own; axis `'b':(2)4` is the factor 4 of b that follows a factor 2."""
    shape = {name.strip("'"): int(size) for name, _, size in (axis.rpartition("=") for axis in sizes.split(","))}
    factors: dict[str, list[tuple[int, int]]] = {name: [] for name in shape}
    for match in _AXIS.finditer(axes):
        name = match[1] or match[2]
        factors[name].append((int(match[3] or 1), int(match[4] or shape[name])))
    # Every axis of the mesh as the factors that it is split into: those in `grouped` are the groups'.
    dims: list[int] = []
    grouped: list[int] = []
    for name, size in shape.items():
        done = 1
        for before, factor in sorted(factors[name]):
            dims += [before // done, factor]
            grouped.append(len(dims) - 1)
            done = before * factor
        dims.append(size // done)
    if device_ids is None:
        devices = np.arange(math.prod(dims))
    else:
        devices = _iota(device_ids) if device_ids.startswith("[") else np.array(_ints(device_ids))
    group = math.prod(dims[axis] for axis in grouped)
    return np.moveaxis(devices.reshape(dims), grouped, range(-len(grouped), 0)).reshape(-1, group).tolist()


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
