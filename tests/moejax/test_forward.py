"""`forward` outside of traced functions: compiled once for a shape, and what it refuses there and inside."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moejax
from tests.messages import refuses
from tests.moejax.decoding.tiny_checkpoint import load_tiny

TOKENS = np.array([[5, 9, 200, 7], [1, 2, 3, 4]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> moejax.Model:
    return load_tiny(tmp_path_factory.mktemp("forward")).model


def test_one_program_for_a_shape(model: moejax.Model, caplog: pytest.LogCaptureFixture) -> None:
    expected, swapped = moejax.logits(model, TOKENS.tolist()), TOKENS[::-1].copy()
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        first = model.forward(model.params, TOKENS)
        compiled = [one for one in caplog.messages if one.startswith("Finished XLA compilation")]
        other = model.with_params({"final_norm.scale": 2 * model.get("final_norm.scale")})
        caplog.clear()
        doubled = other.forward(other.params, swapped)
        again = [one for one in caplog.messages if one.startswith("Finished XLA compilation")]
    assert (len(compiled), again) == (1, [])
    for row, one in enumerate(expected):
        np.testing.assert_allclose(first[row], one, atol=1e-4)
        np.testing.assert_allclose(doubled[1 - row], 2 * one, atol=1e-4)


def test_lengths(model: moejax.Model) -> None:
    padded = np.array([[5, 9, 200, 7], [1, 2, 299, 299]])
    found = model.forward(model.params, padded, np.array([4, 2]))
    np.testing.assert_allclose(found[1, :2], moejax.logits(model, [[1, 2]])[0], atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "lengths", "facts"),
    [
        ([[1, 2]], None, ["tokens", "[B, T]", "list"]),
        (np.array([1, 2]), None, ["tokens", "[B, T]", "[2]"]),
        (np.array([[1.0, 2.0]]), None, ["tokens", "float64"]),
        (np.array([[True]]), None, ["tokens", "bool"]),
        (np.zeros((1, 0), int), None, ["[1, 0]", 1024]),
        (np.zeros((0, 3), int), None, ["[0, 3]"]),
        (np.zeros((1, 1025), int), None, ["[1, 1025]", 1024, "max_seq_len"]),
        (np.array([[1, 300, 301]]), None, ["tokens", 0, 299, 300]),
        (np.array([[1, -1]]), None, ["tokens", 0, 299, "-1"]),
        (TOKENS, [4, 4], ["lengths", "[B]", "list"]),
        (TOKENS, np.array([4]), ["lengths", "[1]", 2]),
        (TOKENS, np.array([4.0, 4.0]), ["lengths", "float64"]),
        (TOKENS, np.array([4, 5]), ["lengths", 0, 4, 5]),
    ],
)
def test_what_cannot_be_fed(model: moejax.Model, tokens: Any, lengths: Any, facts: list[Any]) -> None:
    with refuses(ValueError, *facts) as caught:
        model.forward(model.params, tokens, lengths)
    assert "\n" not in str(caught.value)


def test_shapes_are_checked_inside_a_traced_function(model: moejax.Model) -> None:
    run = jax.jit(model.forward)
    with refuses(ValueError, "tokens", "[B, T]", "[2]"):
        run(model.params, jnp.array([1, 2]))
    with refuses(ValueError, "tokens", "float32"):
        run(model.params, jnp.array([[1.0, 2.0]]))
    np.testing.assert_allclose(run(model.params, TOKENS), model.forward(model.params, TOKENS), atol=1e-4)


def test_other_params(model: moejax.Model) -> None:
    for params in (None, {}, model, model.tensors()):
        for call in (model.forward, lambda given, tokens: model.merged(given)):
            with refuses(ValueError, "model.params", type(params).__name__):
                call(params, TOKENS)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("batch", "length", "facts"), [(0, 4, ["batch", 0]), (1, -4, ["length", "-4"]), (1.0, 4, [1.0])]
)
def test_a_cache_of_no_size(model: moejax.Model, batch: Any, length: Any, facts: list[Any]) -> None:
    with refuses(ValueError, *facts):
        model.empty_cache(batch, length)
