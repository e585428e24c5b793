"""Every expert backend against the loop over tokens, and what must not change its result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax import Array

from moejax.ops.routing import Routing
from moejax.ops.table import BACKENDS, BackendName
from moejax.ops.xla.blocked import block_rows
from tests.moejax.moe.oracle import Layer, moe_loop, random_layer, route_loop
from tests.moejax.ops.runnable import RUNNABLE

D, F = 8, 12

# Outputs of order 1 from sums of at most 12 products: float32 rounds each to 6e-8.
FLOAT32_ATOL = 3e-6

# Two roundings to 8 bits (the hidden values, and products of rounded ones) of outputs of order 1, at most about 4.
BFLOAT16_ATOL = 0.06

# T E A: one token, two, an odd number, powers of two and their neighbours; every A with few and many experts.
SHAPES = [(1, 1, 1), (1, 8, 2), (2, 2, 1), (3, 5, 2), (7, 2, 2), (8, 8, 4), (9, 16, 4), (16, 5, 1), (17, 8, 2)]

backends = pytest.mark.parametrize("backend", RUNNABLE)
RUN = {name: jax.jit(BACKENDS[name].apply) for name in RUNNABLE}


def apply(backend: BackendName, layer: Layer, x: np.ndarray | Array, routing: Routing) -> np.ndarray:
    got = RUN[backend](layer.laid_out(BACKENDS[backend].layout, BACKENDS[backend].storage), jnp.asarray(x), routing)
    assert got.dtype in (jnp.float32, jnp.asarray(x).dtype)
    return np.asarray(got, np.float32)


def tokens(t: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, t]).standard_normal((t, D)).astype(np.float32)


@st.composite
def routings(draw: st.DrawFn, t: int, e: int, a: int) -> Routing:
    """Ties, experts that many or all tokens prefer, experts that nobody chooses, rows that are padding."""
    logits = draw(arrays(np.int8, (t, e), elements=st.integers(-3, 3))).astype(np.float32)
    preferred = draw(st.lists(st.integers(0, e - 1), max_size=2 * a))
    logits[:, preferred] += 10
    valid = draw(st.just(np.ones(t, bool)) | arrays(bool, (t,)))
    return route_loop(logits, valid, a)


@backends
@pytest.mark.parametrize(("t", "e", "a"), SHAPES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_equals_loop(backend: BackendName, t: int, e: int, a: int, data: st.DataObject) -> None:
    routing = data.draw(routings(t, e, a))
    x, layer = tokens(t, data.draw(st.integers(0, 99))), random_layer(e, D, F)
    np.testing.assert_allclose(
        apply(backend, layer, x, routing), moe_loop(layer, x, routing), rtol=0, atol=FLOAT32_ATOL
    )


@backends
@pytest.mark.parametrize(("t", "e", "a"), [(1, 8, 2), (17, 8, 2)])
def test_bfloat16_is_near_the_loop(backend: BackendName, t: int, e: int, a: int) -> None:
    """The loop computes exactly what bfloat16 weights and tokens say."""
    layer = random_layer(e, D, F, "bfloat16")
    x = jnp.asarray(tokens(t), jnp.bfloat16)
    routing = route_loop(np.random.default_rng(0).standard_normal((t, e)), np.ones(t, bool), a)
    expected = moe_loop(layer, np.asarray(x), routing)
    got = apply(backend, layer, x, routing)
    np.testing.assert_allclose(got, expected, rtol=0, atol=BFLOAT16_ATOL)
    assert np.abs(got - expected).max() > FLOAT32_ATOL, "this was not computed in bfloat16"


BLOCK_TOKENS = 24  # over 2 experts: blocks of 16 rows


@backends
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 15, 16, 17, 23, 24])
@pytest.mark.parametrize("padding", [0, 3])
def test_rows_around_the_edges_of_a_block(backend: BackendName, count: int, padding: int) -> None:
    """`count` rows for expert 0, the last `padding` rows for none, the others for expert 1."""
    assert block_rows(BLOCK_TOKENS, 2) == 16
    experts = np.where(np.arange(BLOCK_TOKENS) < count, 0, 1)
    experts = np.where(np.arange(BLOCK_TOKENS) < BLOCK_TOKENS - padding, experts, 2)
    experts = np.random.default_rng(count).permutation(experts).astype(np.int32)[:, None]
    routing = Routing(jnp.asarray(experts), jnp.asarray((experts < 2).astype(np.float32)))
    x, layer = tokens(BLOCK_TOKENS), random_layer(2, D, F)
    np.testing.assert_allclose(
        apply(backend, layer, x, routing), moe_loop(layer, x, routing), rtol=0, atol=FLOAT32_ATOL
    )


@backends
def test_padding_alone_gives_zeros(backend: BackendName) -> None:
    routing = route_loop(np.zeros((3, 5), np.float32), np.zeros(3, bool), 2)
    np.testing.assert_array_equal(apply(backend, random_layer(5, D, F), tokens(3), routing), np.zeros((3, D)))


# What follows must not change a result. T E A of all of it:
T, E, A = 17, 8, 2


def routed(t: int, seed: int) -> tuple[np.ndarray, Routing]:
    logits = np.random.default_rng([seed, 7]).standard_normal((t, E)).astype(np.float32)
    return logits, route_loop(logits, np.ones(t, bool), A)


@backends
@settings(max_examples=20, deadline=None)
@given(relabelled=st.permutations(range(E)), seed=st.integers(0, 9))
def test_names_of_experts_do_not_matter(backend: BackendName, relabelled: list[int], seed: int) -> None:
    """Expert e of the second layer is expert relabelled[e] of the first."""
    layer, x = random_layer(E, D, F), tokens(T, seed)
    logits, routing = routed(T, seed)
    other = Layer(experts=[layer.experts[e] for e in relabelled])
    other_routing = route_loop(logits[:, relabelled], np.ones(T, bool), A)
    np.testing.assert_allclose(
        apply(backend, other, x, other_routing), apply(backend, layer, x, routing), rtol=0, atol=FLOAT32_ATOL
    )


@backends
@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(T)), seed=st.integers(0, 9))
def test_order_of_tokens_does_not_matter(backend: BackendName, order: list[int], seed: int) -> None:
    layer, x = random_layer(E, D, F), tokens(T, seed)
    _, routing = routed(T, seed)
    shuffled = Routing(routing.experts[np.array(order)], routing.weights[np.array(order)])
    np.testing.assert_allclose(
        apply(backend, layer, x[order], shuffled), apply(backend, layer, x, routing)[order], rtol=0, atol=FLOAT32_ATOL
    )


@backends
@settings(max_examples=20, deadline=None)
@given(kept=st.sets(st.integers(0, T - 1), min_size=1), valid=arrays(bool, (T,)), seed=st.integers(0, 9))
def test_neighbours_do_not_matter(backend: BackendName, kept: set[int], valid: np.ndarray, seed: int) -> None:
    """The tokens that are not `kept` become other ones, or padding, or huge."""
    layer, rows = random_layer(E, D, F), sorted(kept)
    x, (logits, routing) = tokens(T, seed), routed(T, seed)
    others = np.setdiff1d(np.arange(T), rows)
    x_changed, logits_changed, valid_changed = x.copy(), logits.copy(), np.ones(T, bool)
    x_changed[others] = tokens(T, seed + 1)[others] * 1e3
    logits_changed[others] = routed(T, seed + 1)[0][others]
    valid_changed[others] = valid[others]
    changed = apply(backend, layer, x_changed, route_loop(logits_changed, valid_changed, A))
    np.testing.assert_allclose(changed[rows], apply(backend, layer, x, routing)[rows], rtol=0, atol=FLOAT32_ATOL)
