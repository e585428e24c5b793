"""Top-k routing against a loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moejax.ops.routing import route
from tests.moejax.moe.oracle import route_loop

# Softmax of at most 16 logits in float32: a few roundings of 6e-8 each.
WEIGHTS_ATOL = 1e-6

SHAPES = [(1, 1, 1), (1, 8, 2), (3, 5, 2), (6, 4, 4), (7, 16, 4)]  # T E A

run = jax.jit(route, static_argnums=2)


@pytest.mark.parametrize(("t", "e", "a"), SHAPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_loop(t: int, e: int, a: int, data: st.DataObject) -> None:
    """Whole numbers as logits, so that many of them are equal."""
    logits = data.draw(arrays(np.int8, (t, e), elements=st.integers(-3, 3))).astype(np.float32)
    valid = data.draw(arrays(bool, (t,)))
    got, expected = run(jnp.asarray(logits), jnp.asarray(valid), a), route_loop(logits, valid, a)
    assert got.experts.dtype == jnp.int32
    assert got.weights.dtype == jnp.float32
    np.testing.assert_array_equal(got.experts, expected.experts)
    np.testing.assert_allclose(got.weights, expected.weights, rtol=0, atol=WEIGHTS_ATOL)


def test_ties_go_to_the_lower_id() -> None:
    logits = jnp.array([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0], [2.0, 1.0, 2.0, 5.0]])
    routing = run(logits, jnp.ones(3, bool), 2)
    assert routing.experts.tolist() == [[1, 2], [0, 1], [3, 0]]


def test_best_expert_comes_first_and_weights_fall() -> None:
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((50, 8)), jnp.float32)
    routing = run(logits, jnp.ones(50, bool), 4)
    weights = np.asarray(routing.weights)
    assert (weights[:, 1:] <= weights[:, :-1]).all()
    np.testing.assert_array_equal(routing.experts[:, 0], np.asarray(logits).argmax(axis=1))


def test_rows_that_are_not_valid_go_to_no_expert() -> None:
    logits = jnp.full((3, 5), jnp.nan).at[1].set(0.0)
    routing = run(logits, jnp.array([False, True, False]), 2)
    assert routing.experts.tolist() == [[5, 5], [0, 1], [5, 5]]
    np.testing.assert_array_equal(routing.weights, [[0, 0], [0.5, 0.5], [0, 0]])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_weights_sum_to_one_whatever_the_scale(scale: float) -> None:
    logits = jnp.asarray(np.random.default_rng(1).standard_normal((64, 8)) * scale, jnp.float32)
    weights = np.asarray(run(logits, jnp.ones(64, bool), 2).weights)
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=WEIGHTS_ATOL)


def test_one_expert_per_token_has_weight_one() -> None:
    """Renormalised: not the probability that the softmax gave it."""
    logits = jnp.asarray(np.random.default_rng(2).standard_normal((9, 6)), jnp.float32)
    np.testing.assert_array_equal(run(logits, jnp.ones(9, bool), 1).weights, np.ones((9, 1)))


def test_computes_in_float32() -> None:
    """Logits of 16 bits are widened first: their softmax is not rounded to 16 bits."""
    logits = np.array([[1.0, 0.5, 0.25]], np.float32)  # exact in bfloat16
    got = run(jnp.asarray(logits, jnp.bfloat16), jnp.ones(1, bool), 2)
    np.testing.assert_allclose(got.weights, route_loop(logits, np.ones(1, bool), 2).weights, rtol=0, atol=WEIGHTS_ATOL)
