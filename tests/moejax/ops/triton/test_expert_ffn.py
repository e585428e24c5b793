"""The decode kernels, interpreted: right, and they touch only the weights of chosen experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl

from moejax.ops.triton import few_tokens
from moejax.ops.triton.few_tokens import MOST_TOKENS, expert_ffn
from moejax.ops.triton.launch import Out, launch
from tests.messages import refuses
from tests.moejax.ops.triton.cases import FLOAT32_ATOL, REFERENCE, interpreted, normal, poisoned, routings, top

# T E A D F: one token; more rows than experts and fewer; sizes that divide into no block; T at the edge of a tile.
SHAPES = [(1, 8, 2, 40, 36), (2, 16, 4, 16, 24), (5, 3, 1, 33, 70), (17, 8, 2, 8, 12)]

# Hidden values and products are rounded to 8 bits where the reference rounds them too, but not always to the same side.
BFLOAT16_ATOL = 0.03


def weights_of(e: int, d: int, f: int, dtype: str = "float32") -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(e, f, d, dtype=dtype), normal(e, f, d, seed=1, dtype=dtype), normal(e, d, f, dtype=dtype)


@pytest.mark.parametrize(("t", "e", "a", "d", "f"), SHAPES)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_equals_reference(t: int, e: int, a: int, d: int, f: int, data: st.DataObject) -> None:
    """With NaN in every weight that must not be read, and in tokens that are routed to no expert."""
    routes = data.draw(routings(t, e, a))
    weights = weights_of(e, d, f)
    x = jnp.where((routes.experts == e).all(axis=1)[:, None], jnp.nan, normal(t, d))
    got = interpreted("expert_ffn")(*poisoned(weights, routes.counts), x, routes.experts, routes.weights)
    expected = REFERENCE.expert_ffn(*weights, x, routes.experts, routes.weights)
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT32_ATOL)
    assert got.dtype == jnp.float32 and np.isfinite(got).all()


@pytest.mark.parametrize(("t", "dtype"), [(1, "bfloat16"), (3, "bfloat16"), (3, "float16")])
def test_narrow_dtypes(t: int, dtype: str) -> None:
    weights, x = weights_of(4, 16, 24, dtype), normal(t, 16, dtype=dtype)
    routes = REFERENCE.route(normal(t, 4), jnp.ones(t, bool), top(2))
    got = interpreted("expert_ffn")(*weights, x, routes.experts, routes.weights)
    expected = REFERENCE.expert_ffn(*weights, x, routes.experts, routes.weights)
    np.testing.assert_allclose(got, expected, rtol=0, atol=BFLOAT16_ATOL)


@pytest.mark.parametrize("t", [1, 4])
def test_nan_of_one_token_stays_there(t: int) -> None:
    weights, x = weights_of(4, 8, 12), normal(t, 8).at[0].set(jnp.nan)
    experts = jnp.tile(jnp.asarray([[1, 3]], jnp.int32), (t, 1))
    got = interpreted("expert_ffn")(*weights, x, experts, jnp.full((t, 2), 0.5))
    assert np.isnan(got[0]).all() and np.isfinite(got[1:]).all()


@pytest.mark.parametrize(("t", "e"), [(3, 16), (3, 6), (9, 4)])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_one_slot_computes_each_expert(t: int, e: int, data: st.DataObject) -> None:
    """With fewer rows than experts a slot is a row, else an expert: either way each expert in use is read once."""
    routes = data.draw(routings(t, e, 2))
    slots = min(e, t * 2)
    computed = computing_slots(t, e, slots)(routes.experts)
    experts = np.asarray(routes.experts).ravel()
    of_slot = np.arange(e) if e <= t * 2 else experts
    assert sorted(of_slot[np.asarray(computed) == 1]) == sorted(set(experts[experts < e]))


@functools.cache
def computing_slots(t: int, e: int, slots: int):
    """A kernel that says of every slot whether it computes."""

    def kernel(experts_ref, computes_ref):
        slot = pl.program_id(0)
        _, rows = few_tokens._expert_and_rows(experts_ref, e, slot, 16)
        computes_ref[slot] = few_tokens._is_first(rows, e, t * 2, slot).astype(jnp.int32)

    return jax.jit(
        lambda experts: launch(
            kernel, "slots", (slots,), (Out((slots,), jnp.int32),), (experts,), warps=1, interpret=True
        )[0]
    )


def test_rows_routed_nowhere_give_zeros() -> None:
    weights = poisoned(weights_of(4, 8, 12), jnp.zeros(4, jnp.int32))
    for t in (1, 3):
        none = jnp.full((t, 2), 4, jnp.int32)
        np.testing.assert_array_equal(
            interpreted("expert_ffn")(*weights, normal(t, 8), none, jnp.zeros((t, 2))), np.zeros((t, 8))
        )


def test_no_tokens() -> None:
    got = expert_ffn(*weights_of(4, 8, 12), jnp.zeros((0, 8)), jnp.zeros((0, 2), jnp.int32), jnp.zeros((0, 2)))
    assert got.shape == (0, 8) and got.dtype == jnp.float32


def test_too_many_tokens_are_refused() -> None:
    t = MOST_TOKENS + 1
    with refuses(NotImplementedError, MOST_TOKENS, f"got {t}", "grouped_gate_up"):
        expert_ffn(*weights_of(4, 8, 12), jnp.zeros((t, 8)), jnp.zeros((t, 2), jnp.int32), jnp.zeros((t, 2)))
