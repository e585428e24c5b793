"""Where an array lives, as reported: compared with where JAX puts it."""

import math
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from moejax._sharding import (
    MeshConfig,
    Placement,
    Rules,
    bytes_per_device,
    describe,
    mesh_shapes,
    partition_spec,
    placement,
)
from moejax._sharding.logical import LogicalAxes
from tests.messages import refuses


def rules(mesh: MeshConfig) -> Rules:
    return Rules.of(mesh, batch=("data", "expert"), experts=("expert",), mlp=("tensor",), vocab=("expert", "tensor"))


ARRAYS: list[tuple[LogicalAxes, tuple[int, ...]]] = [
    (("experts", "mlp", "embed"), (8, 16, 3)),
    (("vocab", "embed"), (64, 5)),
    (("batch", None, "mlp"), (16, 2, 8)),
    (("embed",), (7,)),
    ((None, None), (2, 3)),
]


@pytest.mark.parametrize("mesh", list(mesh_shapes(8)), ids=str)
def test_every_array_lives_where_the_report_says(mesh: MeshConfig) -> None:
    """Shape and bytes of every device's part, and along which axes parts repeat: from the arrays themselves."""
    devices = mesh.build()
    placements = []
    for axes, shape in ARRAYS:
        found = placement("array", shape, "bfloat16", 2, axes, rules(mesh))
        placements.append(found)
        array = jax.device_put(np.zeros(shape, np.uint16), NamedSharding(devices, partition_spec(found.spec)))
        shards = array.addressable_shards
        assert {shard.data.shape for shard in shards} == {found.local_shape}
        assert {shard.data.nbytes for shard in shards} == {found.bytes_per_device}
        assert array.nbytes == found.bytes_total
        parts = array.sharding.devices_indices_map(shape)
        assert set(found.replicated_over) == {
            axis for place, axis in enumerate(devices.axis_names) if repeated_along(devices.devices, parts, place)
        }
    assert bytes_per_device(placements) == sum(one.bytes_per_device for one in placements)


def repeated_along(devices: np.ndarray, parts: Any, axis: int) -> bool:
    """Whether all devices in a line along this mesh axis, of which there are several, hold the same part."""
    lines = np.moveaxis(devices, axis, -1).reshape(-1, devices.shape[axis])
    return devices.shape[axis] > 1 and all(len({str(parts[device]) for device in line}) == 1 for line in lines)


def test_what_a_placement_says() -> None:
    mesh = MeshConfig(data=2, expert=2, tensor=3)
    found = placement("layers.0.moe.up", (4, 6, 5), "bfloat16", 2, ("experts", "mlp", "embed"), rules(mesh))
    assert found == Placement(
        path="layers.0.moe.up",
        shape=(4, 6, 5),
        dtype="bfloat16",
        axes=("experts", "mlp", "embed"),
        spec=(("expert",), ("tensor",), ()),
        local_shape=(2, 2, 5),
        bytes_total=240,
        bytes_per_device=40,
        replicated_over=("data",),
    )
    assert found.bytes_per_device * mesh.size == found.bytes_total * math.prod(
        mesh.shape[axis] for axis in found.replicated_over
    )


def test_what_does_not_divide_is_refused_by_name() -> None:
    with refuses(ValueError, "embed.table", "vocab", "10", "expert x tensor = 8", "data=1,expert=4,tensor=2"):
        placement("embed.table", (10, 4), "float32", 4, ("vocab", "embed"), rules(MeshConfig(expert=4, tensor=2)))


def test_how_people_write_it() -> None:
    assert describe(()) == "[]"
    assert describe((("expert",), (), ("expert", "tensor"))) == "[expert, -, expert+tensor]"
