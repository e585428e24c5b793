"""The kernels that work row by row: norm, routing, and rotary embeddings on the way into the cache."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from moejax.families.config import RouterPolicy
from moejax.model.cache import LayerCache
from moejax.model.rotary import Rotation, rotation
from moejax.ops import reference
from moejax.ops.native import model_ops, ops
from moejax.ops.xla import rotate
from tests.messages import refuses

DTYPES = ("float32", "bfloat16", "float16")
# Half a unit of the last bit: 24, 8 and 11 bits; float32 also has a dozen roundings before it.
RTOL = {"float32": 2e-6, "bfloat16": 2**-8, "float16": 2**-11}
WEIGHT_ATOL = 1e-6  # of probabilities: quotients of sums of exponentials, each to 2e-7

dtypes = pytest.mark.parametrize("dtype", DTYPES)
norm = jax.jit(model_ops.norm, static_argnames="eps")


def into_cache(function: Any) -> Any:
    """The operation on a layer's cache."""

    def run(q: Array, k: Array, v: Array, angles: Rotation, starts: Array, cache: LayerCache) -> Any:
        rotated, keys, values = function(q, k, v, *angles, starts, cache.k, cache.v, cache.dtype)
        return rotated, replace(cache, k=keys, v=values)

    return run


def normal(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 17), (1, 40, 64), (3, 1, 530)])
def test_rms_norm(dtype: str, shape: tuple[int, ...]) -> None:
    x, scale = 3 * normal(shape, dtype), normal(shape[2:], dtype, 1)
    x64, scale64 = np.asarray(x).astype(np.float64), np.asarray(scale).astype(np.float64)
    exact = x64 / np.sqrt((x64**2).mean(axis=-1, keepdims=True) + 1e-5) * scale64
    got = norm(x, scale, eps=1e-5)
    assert got.dtype == dtype
    np.testing.assert_allclose(np.asarray(got).astype(np.float64), exact, rtol=RTOL[dtype], atol=1e-7)


def test_rms_norm_of_a_row_has_the_same_bits_in_any_company() -> None:
    x, scale = normal((700, 1, 300)), normal((300,), seed=1)
    together = np.array(norm(x, scale, eps=1e-5))
    for row in (0, 16, 699):
        np.testing.assert_array_equal(norm(x[row : row + 1], scale, eps=1e-5)[0], together[row])
    spoilt = np.array(norm(x.at[5, 0, 299].set(jnp.nan), scale, eps=1e-5))
    assert np.isnan(spoilt[5]).all()
    np.testing.assert_array_equal(np.delete(spoilt, 5, axis=0), np.delete(together, 5, axis=0))


@pytest.mark.parametrize(("tokens", "experts", "chosen"), [(1, 1, 1), (1, 8, 2), (40, 8, 2), (5, 64, 6), (3, 4, 4)])
@pytest.mark.parametrize(("renormalise", "scale"), [(True, 1.0), (False, 1.0), (True, 2.5), (False, 0.5)])
def test_route(tokens: int, experts: int, chosen: int, renormalise: bool, scale: float) -> None:
    logits = jnp.round(2 * normal((tokens, experts))) / 2  # with many ties
    valid = jnp.arange(tokens) % 3 != 1
    policy = RouterPolicy(experts_per_token=chosen, renormalise=renormalise, scale=scale)
    got = jax.jit(ops.route, static_argnums=2)(logits, valid, policy)
    expected = jax.jit(reference.route, static_argnums=2)(logits, valid, policy)
    np.testing.assert_array_equal(got.experts, expected.experts)
    np.testing.assert_allclose(got.weights, expected.weights, rtol=0, atol=WEIGHT_ATOL)


def test_route_spreads_nan_to_its_own_token_and_chooses_different_experts() -> None:
    logits = normal((3, 5)).at[1, 2].set(jnp.nan)
    got = jax.jit(ops.route, static_argnums=2)(logits, jnp.ones(3, bool), RouterPolicy(experts_per_token=3))
    assert np.isnan(got.weights[1]).all() and np.isfinite(np.delete(np.array(got.weights), 1, axis=0)).all()
    assert sorted(set(np.array(got.experts[1]).tolist())) == sorted(np.array(got.experts[1]).tolist())
    assert ((np.array(got.experts) >= 0) & (np.array(got.experts) < 5)).all()


@dtypes
@pytest.mark.parametrize(("b", "t", "n", "k", "h"), [(1, 1, 2, 1, 8), (3, 5, 4, 2, 34), (2, 9, 2, 2, 64)])
def test_rotate_into_cache(dtype: str, b: int, t: int, n: int, k: int, h: int) -> None:
    """The last row begins so late that its tokens would not fit: they go to the last slots, as XLA has it."""
    q, keys, values = normal((b, t, n, h)), normal((b, t, k, h), seed=1), normal((b, t, k, h), seed=2)
    starts = jnp.asarray([0, 3, 30][-b:], jnp.int32)
    angles = rotation(starts[:, None] + jnp.arange(t)[None], h, 1e4)
    stored = "float32" if dtype == "float32" else "uint16"
    cache = LayerCache(k=jnp.ones((b, k, 20, h), stored), v=jnp.ones((b, k, 20, h), stored), dtype=dtype)
    got_q, got = jax.jit(into_cache(ops.rotate_into_cache))(q, keys, values, angles, starts, cache)
    expected_q, expected = jax.jit(into_cache(rotate.rotate_into_cache))(q, keys, values, angles, starts, cache)
    assert got_q.dtype == dtype and got.dtype == dtype
    pairs = ((got_q, expected_q), (got.keys(), expected.keys()), (got.values(), expected.values()))
    for one, other in pairs:
        np.testing.assert_allclose(
            *(np.asarray(a).astype(np.float64) for a in (one, other)), rtol=2 * RTOL[dtype], atol=1e-6
        )


def test_caches_are_written_in_place() -> None:
    cache = LayerCache(
        k=jnp.zeros((2, 2, 64, 16), jnp.uint16), v=jnp.zeros((2, 2, 64, 16), jnp.uint16), dtype="bfloat16"
    )
    q, keys, starts = normal((2, 1, 4, 16)), normal((2, 1, 2, 16)), jnp.zeros(2, jnp.int32)
    angles = rotation(starts[:, None], 16, 1e4)
    program = (
        jax.jit(into_cache(ops.rotate_into_cache), donate_argnums=5)
        .lower(q, keys, keys, angles, starts, cache)
        .compile()
    )
    text = program.as_text()
    assert text is not None and "moejax_rotate" in text and "u16[2,2,64,16]{3,2,1,0} copy" not in text


def test_operands_that_do_not_fit_are_refused_while_tracing() -> None:
    with refuses(TypeError, "rms_norm", "(2, 8)", "(7,)"):
        ops.rms_norm(normal((2, 8)), normal((7,)), 1e-5)
    with refuses(TypeError, "route", "float32 (2, 4)", "(2,)", "5 per token"):
        ops.route(normal((2, 4)), jnp.ones(2, bool), RouterPolicy(experts_per_token=5))
    q, keys, cache, starts = normal((2, 3, 4, 8)), normal((2, 3, 2, 8)), normal((2, 2, 2, 8)), jnp.zeros(2, jnp.int32)
    with refuses(TypeError, "rotate_into_cache", "q"):
        ops.rotate_into_cache(q, keys, keys[:, :2], keys[..., 0, :4], keys[..., 0, :4], starts, cache, cache, "float32")
    with refuses(ValueError, "3 tokens", "8", "2 positions"):
        ops.rotate_into_cache(q, keys, keys, keys[..., 0, :4], keys[..., 0, :4], starts, cache, cache, "float32")


@pytest.mark.parametrize("count", [1, 15, 128, ops.READ_BLOCK, 3 * ops.READ_BLOCK + 77])
def test_reading_adds_up_every_number(count: int) -> None:
    numbers = np.random.default_rng(count).integers(-8, 8, count).astype(np.float32)  # sums of these are exact
    got = jax.jit(ops.read_memory)(jnp.asarray(numbers))
    np.testing.assert_array_equal(got, np.add.reduceat(numbers, range(0, count, ops.READ_BLOCK)))
