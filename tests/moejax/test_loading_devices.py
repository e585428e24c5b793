"""On which devices a model is loaded, and in which dtype, in every form that either is given in."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import moejax
from tests.messages import refuses
from tests.moejax.decoding.tiny_checkpoint import load_tiny

PROMPT = [[5, 9, 200, 7]]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("devices")
    load_tiny(folder)
    return folder


def places(model: moejax.Model) -> set[int]:
    return {device.id for leaf in jax.tree.leaves(model.params) for device in leaf.devices()}


def test_named_devices(tiny_folder: Path) -> None:
    expected = moejax.logits(moejax.load(tiny_folder, dtype="float32"), PROMPT)[0]
    devices = jax.devices()[5:2:-1]
    one = moejax.load(tiny_folder, dtype="float32", devices=devices[:1])
    two = moejax.load(tiny_folder, dtype="float32", devices=devices, mesh={"expert": 2})
    assert places(one) == {5} and places(two) == {4, 5} and two.devices == devices[:2]
    for model in (one, two):
        np.testing.assert_allclose(moejax.logits(model, PROMPT)[0], expected, atol=1e-4)
        assert len(moejax.decode(model, PROMPT, max_tokens=4)[0].token_ids) == 4
    with refuses(ValueError, "4 devices", "3 cpu devices"):
        moejax.load(tiny_folder, devices=devices, mesh="expert=4")
    assert places(moejax.load(tiny_folder, devices=devices, mesh="auto")) <= {3, 4, 5}


def test_the_default_device(tiny_folder: Path) -> None:
    with jax.default_device(jax.devices()[6]):
        assert places(moejax.load(tiny_folder)) == {6}
        assert places(moejax.load(tiny_folder, devices=jax.devices()[:1])) == {0}
    assert places(moejax.load(tiny_folder)) == {0}


def test_a_mesh_of_jax(tiny_folder: Path) -> None:
    array: Any = np.array(jax.devices()[4:]).reshape(2, 2)
    model = moejax.load(tiny_folder, dtype="float32", mesh=Mesh(array, ("tensor", "expert")))
    assert model.mesh == moejax.MeshConfig(expert=2, tensor=2) and places(model) == {4, 5, 6, 7}
    assert [device.id for device in model.devices] == [4, 6, 5, 7]
    expected = moejax.logits(moejax.load(tiny_folder, dtype="float32"), PROMPT)[0]
    np.testing.assert_allclose(moejax.logits(model, PROMPT)[0], expected, atol=1e-4)
    with refuses(ValueError, "'x'", "data, expert, tensor"):
        moejax.load(tiny_folder, mesh=Mesh(array, ("x", "expert")))
    with refuses(ValueError, "'tensors'", "'tensor'"):
        moejax.load(tiny_folder, mesh={"tensors": 2})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.dtype("bfloat16"), np.dtype(jnp.bfloat16)])
def test_bfloat16_as_jax_has_it(tiny_folder: Path, dtype: Any) -> None:
    assert moejax.load(tiny_folder, dtype=dtype).dtype == "bfloat16"


def test_other_dtypes(tiny_folder: Path) -> None:
    assert moejax.load(tiny_folder, dtype=np.float32).dtype == "float32"
    assert moejax.load(tiny_folder, dtype=np.dtype("float16")).dtype == "float16"
    for wrong, facts in {
        np.float64: ["'float64'", "'float32'"],
        np.int32: ["'int32'"],
        None: ["'None'"],
        3: ["'3'"],
        float: ["'float64'"],
        dict: ["got"],
    }.items():
        with refuses(ValueError, "bfloat16", *facts):
            moejax.load(tiny_folder, dtype=wrong)  # pyright: ignore[reportArgumentType]
