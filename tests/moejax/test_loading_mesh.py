"""Weights onto meshes: the values of one device, and no bytes read that this process' devices do not hold."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from safetensors.numpy import save_file

import moejax
from moejax import loading
from moejax._sharding import MeshConfig
from moejax.checkpoint import Checkpoint, open_checkpoint
from tests.moejax.decoding.tiny_checkpoint import BASE, random_weights

CONFIG = {**BASE, "num_attention_heads": 8, "num_local_experts": 8, "vocab_size": 304, "num_hidden_layers": 1}
MESHES = [
    ("expert=8", "replicated"),
    ("tensor=8", "replicated"),
    ("expert=4,tensor=2", "replicated"),
    ("expert=4,tensor=2", "gather"),
    ("data=2,expert=2,tensor=2", "all_to_all"),
    ("data=2,tensor=4", "replicated"),
]
meshes = pytest.mark.parametrize(("mesh", "dispatch"), MESHES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    (path / "config.json").write_text(json.dumps(CONFIG))
    save_file(random_weights(CONFIG, 0), path / "model.safetensors")
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Checkpoint]:
    """The checkpoints that `load` opens, with their count of bytes."""
    checkpoints: list[Checkpoint] = []

    def opening(source: Any, revision: str | None) -> Checkpoint:
        checkpoints.append(open_checkpoint(source, revision))
        return checkpoints[-1]

    monkeypatch.setattr(loading, "open_checkpoint", opening)
    return checkpoints


def logical_values(model: moejax.Model) -> dict[str, np.ndarray]:
    """Weights as a checkpoint names them, whatever the layout."""
    return {path: np.asarray(array) for path, array in model.structure.unpack(model.params).items()}


def assert_same(got: moejax.Model, expected: moejax.Model) -> None:
    values, others = logical_values(got), logical_values(expected)
    assert values.keys() == others.keys()
    for path, value in values.items():
        np.testing.assert_array_equal(value.view(f"u{value.itemsize}"), others[path].view(f"u{value.itemsize}"), path)


@meshes
@pytest.mark.parametrize("backend", ["blocked", "dense"])
def test_weights_are_those_of_one_device_and_are_read_once(
    folder: Path, opened: list[Checkpoint], mesh: str, dispatch: str, backend: str
) -> None:
    """However many devices hold a part, its bytes are read once; and they are where the placements say."""
    model = moejax.load(folder, mesh=mesh, dispatch=dispatch, dtype="float32", expert_backend=backend)
    assert opened[-1].tensors.read_bytes.total == opened[-1].tensors.total_bytes
    assert_same(model, moejax.load(folder, dtype="float32"))
    for one in model.placements():
        arrays = jax.tree.leaves(model.params[one.path])
        assert all(len(array.addressable_shards) == 8 for array in arrays)
        held = sum(array.addressable_shards[0].data.nbytes for array in arrays)
        assert held == one.bytes_per_device


@meshes
@pytest.mark.parametrize("owned", [range(0, 4), range(4, 8), [5]], ids=["first half", "second half", "one device"])
def test_a_process_reads_what_its_devices_hold(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    opened: list[Checkpoint],
    mesh: str,
    dispatch: str,
    owned: Any,
) -> None:
    """As if only some of the devices were this process'."""
    devices = {jax.devices()[i] for i in owned}

    def only_owned(sharding: NamedSharding, shape: tuple[int, ...]) -> dict[Any, Any]:
        return {device: at for device, at in sharding.devices_indices_map(shape).items() if device in devices}

    def zeros(shape: tuple[int, ...], sharding: NamedSharding, parts: list[jax.Array]) -> jax.Array:
        assert [part.shape for part in parts] == [sharding.shard_shape(shape)] * len(devices)
        assert {device for part in parts for device in part.devices()} == devices
        return jnp.zeros(())

    monkeypatch.setattr(jax.sharding.Sharding, "addressable_devices_indices_map", only_owned)
    monkeypatch.setattr(jax, "make_array_from_single_device_arrays", zeros)
    model = moejax.load(folder, mesh=mesh, dispatch=dispatch, dtype="float32", expert_backend="blocked")
    expected = sum(one.bytes_per_device * distinct_parts(one.spec, model.mesh, owned) for one in model.placements())
    assert opened[-1].tensors.read_bytes.total == expected
    if len(owned) == 1:
        assert expected == sum(one.bytes_per_device for one in model.placements())


def distinct_parts(spec: Any, mesh: MeshConfig, devices: Any) -> int:
    """Different parts of an array on these devices, which are numbered with tensor innermost."""
    places = (np.unravel_index(device, tuple(mesh.shape.values())) for device in devices)
    named = [dict(zip(mesh.shape, place, strict=True)) for place in places]
    return len({tuple(tuple(place[axis] for axis in over) for over in spec) for place in named})


def test_half_of_the_devices_read_half_of_the_experts() -> None:
    """The count above, on one case that can be seen at once."""
    assert distinct_parts((("expert",), ("tensor",), ()), MeshConfig(expert=4, tensor=2), range(4)) == 4
    assert distinct_parts((("tensor",),), MeshConfig(expert=4, tensor=2), range(4)) == 2
    assert distinct_parts(((),), MeshConfig(expert=4, tensor=2), range(4)) == 1


@pytest.mark.parametrize(("mesh", "dispatch", "backend"), [(*MESHES[0], "blocked"), (*MESHES[3], "dense")])
def test_random_weights_are_the_same_on_every_mesh(folder: Path, mesh: str, dispatch: str, backend: str) -> None:
    source = f"random:{folder / 'config.json'}"
    model = moejax.load(source, mesh=mesh, dispatch=dispatch, seed=3, expert_backend=backend)
    assert_same(model, moejax.load(source, seed=3))
