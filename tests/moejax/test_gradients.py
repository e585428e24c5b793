"""Gradients of the forward pass: against differences, against transformers, on meshes; and where there are none."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import moejax
from tests.hf_models import build
from tests.messages import refuses

NAME = "four_queries_per_key_sliding_window"
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 20))
# float32 sums in another order, over tensors whose gradients span four orders of magnitude: of the largest one.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gradients")


@pytest.fixture(scope="module")
def of_transformers(folder: Path) -> Any:
    """The model of transformers, with gradients of `loss` in it."""
    model = build(NAME, folder)
    logits = model(torch.from_numpy(TOKENS), use_cache=False).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(TOKENS[:, 1:]).flatten()).backward()
    return model


Loss = Callable[[dict[str, Any], Any], jax.Array]


def loss_of(model: moejax.Model) -> Loss:
    def loss(weights: dict[str, Any], params: Any) -> jax.Array:
        logits = model.forward(model.replaced(params, weights), jnp.asarray(TOKENS))[:, :-1]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(TOKENS)[:, 1:, None], axis=-1)
        return -jnp.mean(chosen)

    return loss


@pytest.fixture(scope="module")
def model(folder: Path, of_transformers: Any) -> moejax.Model:
    return moejax.load(folder, dtype="float32", expert_backend="dense")


@pytest.fixture(scope="module")
def gradients(model: moejax.Model) -> dict[str, Any]:
    return jax.jit(jax.grad(loss_of(model)))(model.tensors(), model.params)


def by_our_shapes(of_transformers: Any, names: dict[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    """The gradients of transformers by our names; it holds gate above up of all experts in one tensor."""
    theirs = {name: weight.grad.numpy() for name, weight in of_transformers.named_parameters()}
    for ours, name in names.items():
        if ".experts." in ours:
            layer, expert, kind = ours.split(".")[1], int(ours.split(".")[4]), ours.split(".")[5]
            block = f"model.layers.{layer}.mlp.experts"
            if kind == "down":
                yield ours, theirs[f"{block}.down_proj"][expert]
            else:
                yield ours, np.split(theirs[f"{block}.gate_up_proj"][expert], 2)[kind == "up"]
        else:
            yield ours, theirs[name.replace("block_sparse_moe", "mlp")]


def test_every_gradient_is_that_of_transformers(
    model: moejax.Model, gradients: dict[str, Any], of_transformers: Any
) -> None:
    expected = dict(by_our_shapes(of_transformers, model.names()))
    assert expected.keys() == gradients.keys()
    largest = max(float(np.abs(one).max()) for one in expected.values())
    for name, gradient in expected.items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=0, atol=TOLERANCE * largest, err_msg=name)
        assert np.any(gradient), name


def test_gradients_are_the_slopes(model: moejax.Model, gradients: dict[str, Any]) -> None:
    """Along one direction in all weights at a time: central differences of the loss."""
    loss, weights = jax.jit(loss_of(model)), model.tensors()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        direction = {name: rng.standard_normal(one.shape).astype(np.float32) for name, one in weights.items()}
        step = 3e-5  # small for what bends, large for what float32 rounds
        ahead, behind = (
            loss({name: one + sign * step * direction[name] for name, one in weights.items()}, model.params)
            for sign in (1, -1)
        )
        slope = sum(float(np.vdot(gradients[name], direction[name])) for name in weights)
        assert float(ahead - behind) / (2 * step) == pytest.approx(slope, rel=0.03, abs=0.1)


@pytest.mark.parametrize("mesh", ["data=2,expert=3", "expert=2,tensor=2"])  # five experts in six places
def test_gradients_on_a_mesh(folder: Path, gradients: dict[str, Any], mesh: str) -> None:
    model = moejax.load(folder, dtype="float32", expert_backend="dense", mesh=mesh)
    found = jax.jit(jax.grad(loss_of(model)))(model.tensors(), model.params)
    largest = max(float(np.abs(one).max()) for one in gradients.values())
    for name, gradient in gradients.items():
        np.testing.assert_allclose(found[name], np.asarray(gradient), rtol=0, atol=TOLERANCE * largest, err_msg=name)


def test_padding_has_no_gradient(model: moejax.Model) -> None:
    def total(weights: dict[str, Any], tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        return jnp.sum(model.forward(model.replaced(model.params, weights), tokens, lengths)[0, :3])

    table = {"embed.table": model.get("embed.table")}
    slope = jax.jit(jax.grad(total))
    for filler in (7, 9):
        tokens = jnp.array([[1, 2, 3, filler, filler]])
        gradient = np.asarray(slope(table, tokens, jnp.array([3]))["embed.table"])
        assert np.flatnonzero(np.abs(gradient).sum(axis=1)).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("backend", "dtype", "facts"),
    [
        ("native", "float32", ["'native'", "dtype='float32'", "expert_backend='dense'"]),
        ("native", "bfloat16", ["bfloat16", "'native'", "dtype='float32'", "expert_backend='dense'"]),
        ("blocked", "float32", ["'blocked'", "dtype='float32'", "expert_backend='dense'"]),
        ("ragged", "float32", ["'ragged'", "dtype='float32'", "expert_backend='dense'"]),
        ("dense", "bfloat16", ["bfloat16", "dtype='float32'", "expert_backend='dense'"]),
    ],
)
def test_where_there_are_no_gradients(folder: Path, backend: str, dtype: str, facts: Any) -> None:
    other = moejax.load(folder, dtype=dtype, expert_backend=backend)
    with refuses(ValueError, *facts) as caught:
        jax.grad(loss_of(other))({"layers.0.attention.q": other.get("layers.0.attention.q")}, other.params)
    assert "\n" not in str(caught.value)
    with refuses(ValueError, *facts):
        jax.grad(lambda params: other.forward(params, jnp.asarray(TOKENS)).sum(), allow_int=True)(other.params)


def test_the_loss_itself_is_there_without_gradients(folder: Path, model: moejax.Model) -> None:
    other = moejax.load(folder, dtype="float32", expert_backend="native")
    expected, found = (jax.jit(loss_of(one))({}, one.params) for one in (model, other))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
