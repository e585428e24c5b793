"""Which devices a mesh is built of."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from moejax._sharding import chosen_devices
from tests.messages import refuses


def test_all_devices_unless_something_was_said() -> None:
    assert chosen_devices(None) == jax.devices()
    assert chosen_devices(jax.devices()[5:2:-1]) == jax.devices()[5:2:-1]


def test_the_default_device_comes_first() -> None:
    devices = jax.devices()
    with jax.default_device(devices[3]):
        assert chosen_devices(None) == [devices[3], *devices[:3], *devices[4:]]
        assert chosen_devices(devices[:2]) == devices[:2]
    with jax.default_device("cpu"):
        assert chosen_devices(None) == devices


def test_those_of_a_mesh_in_the_order_of_our_axes() -> None:
    array: Any = np.array(jax.devices()).reshape(2, 4)
    mesh = Mesh(array, ("tensor", "expert"))
    assert [device.id for device in chosen_devices(None, mesh)] == [0, 4, 1, 5, 2, 6, 3, 7]
    with refuses(ValueError, "devices", "jax.sharding.Mesh"):
        chosen_devices(jax.devices(), mesh)


@pytest.mark.parametrize("given", [[], [0, 1], "cpu", 3])
def test_what_is_no_device(given: Any) -> None:
    with refuses(ValueError, "devices", "jax.devices()", "got"):
        chosen_devices(given)


def test_a_device_named_twice() -> None:
    with refuses(ValueError, str(jax.devices()[1]), "twice"):
        chosen_devices([*jax.devices()[:2], jax.devices()[1]])


def test_another_platform_than_the_one_that_jax_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with refuses(ValueError, "gpu", "JAX_PLATFORMS=cpu"):
        chosen_devices(jax.devices()[:1])


def test_some_devices_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with refuses(ValueError, "2", "8 devices", "2 processes"):
        chosen_devices(jax.devices()[:2])
    assert chosen_devices(jax.devices()) == jax.devices()
