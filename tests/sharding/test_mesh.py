"""Meshes: how they are written, refused, and built over devices."""

import math
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from moejax._sharding import MESH_AXES, MeshConfig, mesh_config, mesh_shapes
from moejax._sharding.mesh import devices_of_mesh
from tests.messages import refuses


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("data=1,expert=4,tensor=2", (1, 4, 2)),
        ("expert=4", (1, 4, 1)),
        ("tensor=2,data=3", (3, 1, 2)),
        (" expert = 8 , tensor = 16 ", (1, 8, 16)),
        ("data=064", (64, 1, 1)),
        ("data=0999999999", (999_999_999, 1, 1)),
    ],
)
def test_how_a_mesh_is_written(text: str, sizes: tuple[int, int, int]) -> None:
    mesh = MeshConfig.parse(text)
    assert (mesh.data, mesh.expert, mesh.tensor) == sizes
    assert MeshConfig.parse(str(mesh)) == mesh
    assert mesh.size == math.prod(sizes)


@pytest.mark.parametrize("text", ["", "8", "expert", "expert=", "expert=4,", "expert=-1", "expert=two", "expert=4.0"])
def test_what_is_no_mesh(text: str) -> None:
    with refuses(ValueError, '"data=1,expert=4,tensor=2"', f"got {text!r}"):
        MeshConfig.parse(text)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("experts=4", ("'experts'", "data, expert, tensor", "'expert'")),
        ("=4", ("''", "data, expert, tensor")),
        ("pipeline=4", ("'pipeline'", "data, expert, tensor")),
        ("expert=4,expert=2", ("'expert'", "twice")),
    ],
)
def test_axes_that_do_not_exist_or_come_twice(text: str, facts: tuple[str, ...]) -> None:
    with refuses(ValueError, repr(text), *facts):
        MeshConfig.parse(text)


@pytest.mark.parametrize("size", ["1000000000", "1" + "0" * 5000], ids=len)
def test_an_axis_longer_than_any_cluster(size: str) -> None:
    with refuses(ValueError, "expert", "999,999,999", f"got {size[:40]}"):
        MeshConfig.parse(f"expert={size}")


def test_any_type_of_integer_is_a_size() -> None:
    mesh = MeshConfig(expert=np.int64(4), tensor=np.uint8(2))  # type: ignore[arg-type]
    assert mesh == MeshConfig(expert=4, tensor=2) and hash(mesh) == hash(MeshConfig(expert=4, tensor=2))
    assert str(mesh) == "data=1,expert=4,tensor=2" and type(mesh.expert) is int


@pytest.mark.parametrize("size", [0, -1, 2.0, "2", True, None, np.float32(2), np.bool_(True), np.int64(0)])
@pytest.mark.parametrize("axis", MESH_AXES)
def test_sizes_that_are_none(axis: str, size: Any) -> None:
    sizes: dict[str, Any] = {axis: size}
    with refuses(ValueError, axis, f"got {size!r}"):
        MeshConfig(**sizes)


def test_a_size_of_zero_in_words() -> None:
    with refuses(ValueError, "tensor", "got 0"):
        MeshConfig.parse("tensor=0")


def test_every_form_in_which_a_mesh_is_given() -> None:
    assert mesh_config(None) == MeshConfig(data=1, expert=1, tensor=1)
    assert mesh_config("expert=2") == mesh_config(MeshConfig(expert=2)) == MeshConfig(expert=2)
    assert mesh_config({"tensor": 2, "expert": 4}) == MeshConfig(expert=4, tensor=2)
    assert mesh_config({"tp": 2, "ep": 4}) == mesh_config("tp=2,ep=4") == MeshConfig(expert=4, tensor=2)
    assert mesh_config({"dp": 2, "tensor": 2}) == mesh_config("dp=2,tensor=2") == MeshConfig(data=2, tensor=2)
    assert mesh_config(jax.make_mesh((2, 4), ("tp", "ep"))) == MeshConfig(expert=4, tensor=2)
    assert mesh_config(jax.make_mesh((2, 4), ("tensor", "expert"))) == MeshConfig(expert=4, tensor=2)
    assert mesh_config(MeshConfig(data=2).abstract()) == MeshConfig(data=2)


def test_devices_of_a_mesh_whose_axes_are_called_otherwise() -> None:
    ours, theirs = (jax.make_mesh((2, 4), names) for names in (("tensor", "expert"), ("tp", "ep")))
    assert devices_of_mesh(theirs) == devices_of_mesh(ours) != list(ours.devices.flat)


@pytest.mark.parametrize("names", [{"tp": 2, "tensor": 2}, {"data": 1, "dp": 1}])
def test_one_axis_by_two_names(names: dict[str, int]) -> None:
    with refuses(ValueError, "mesh", "'tensor'" if "tp" in names else "'data'", "twice"):
        mesh_config(names)


@pytest.mark.parametrize("of_jax", [False, True])
def test_an_unknown_axis_of_a_dict_or_a_mesh(of_jax: bool) -> None:
    mesh = jax.make_mesh((2, 4), ("data", "experts")) if of_jax else {"data": 2, "experts": 4}
    with refuses(ValueError, "'experts'", "data, expert, tensor", "'expert'"):
        mesh_config(mesh)


@pytest.mark.parametrize("given", [4, (1, 4, 2), {"expert"}])
def test_another_type_is_no_mesh(given: Any) -> None:
    with refuses(ValueError, "mesh", "MeshConfig", '"expert=4,tensor=2"', f"got {given!r}"):
        mesh_config(given)


@pytest.mark.parametrize(("devices", "count"), [(1, 1), (2, 3), (8, 10), (12, 18), (64, 28)])
def test_every_shape_of_a_number_of_devices(devices: int, count: int) -> None:
    """As many as ways to write the number as a product of three, in order."""
    shapes = list(mesh_shapes(devices))
    assert len(shapes) == len(set(map(str, shapes))) == count
    assert all(shape.size == devices for shape in shapes)


def test_devices_along_several_axes() -> None:
    mesh = MeshConfig(data=2, expert=3, tensor=5)
    assert mesh.extent(()) == 1
    assert mesh.extent(("expert", "tensor")) == 15
    assert mesh.extent(MESH_AXES) == mesh.size == 30


@pytest.mark.parametrize("shape", list(mesh_shapes(8)), ids=str)
def test_built_over_all_devices(shape: MeshConfig) -> None:
    """The tensor axis is innermost: its devices are neighbours in JAX's order."""
    mesh = shape.build()
    assert len(jax.devices()) == 8, "the suite runs on 8 simulated devices"
    assert dict(mesh.shape) == shape.shape and mesh.axis_names == MESH_AXES
    assert list(mesh.devices.flat) == jax.devices()
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_built_over_some_devices() -> None:
    mesh = MeshConfig(expert=3, tensor=2).build()
    assert list(mesh.devices.flat) == jax.devices()[:6]
    last = MeshConfig(tensor=2).build(jax.devices()[6:])
    assert list(last.devices.flat) == jax.devices()[6:]


@pytest.mark.parametrize(
    ("given", "there"),
    [(None, "8 cpu devices"), (2, "2 cpu devices"), (1, "1 cpu device")],
)
def test_more_devices_than_there_are(given: int | None, there: str) -> None:
    mesh = MeshConfig(expert=3, tensor=3)
    remedies = ("--simulate-devices 9", "jax.config.update('jax_num_cpu_devices', 9)")
    with refuses(ValueError, "data=1,expert=3,tensor=3", "9 devices", there, *remedies):
        mesh.build(None if given is None else jax.devices()[:given])


def test_several_processes_must_all_have_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with refuses(ValueError, "data=1,expert=4,tensor=1", "4", "8 devices", "2 processes"):
        MeshConfig(expert=4).build()
    assert MeshConfig(expert=8).build().size == 8


def test_a_mesh_without_devices_may_be_of_any_size() -> None:
    mesh = MeshConfig(data=4, expert=8, tensor=32).abstract()
    assert dict(mesh.shape) == {"data": 4, "expert": 8, "tensor": 32}
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_short_names_of_axes() -> None:
    assert MeshConfig.parse("ep=4,tp=2,dp=3") == MeshConfig(data=3, expert=4, tensor=2)
    assert mesh_config({"ep": 4, "tensor": 2}) == MeshConfig(expert=4, tensor=2)
    with pytest.raises(ValueError, match="twice"):
        mesh_config({"tp": 2, "tensor": 2})
    with pytest.raises(ValueError, match="twice"):
        MeshConfig.parse("tp=2,tensor=2")
