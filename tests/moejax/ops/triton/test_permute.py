"""Rows into blocks and back, and the layout of the blocks."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moejax.ops.block_layout import block_layout, most_blocks
from moejax.ops.reference import Routes
from tests.moejax.ops.triton.cases import FLOAT32_ATOL, REFERENCE, interpreted, normal, routings

WIDTH = 12  # no power of two
BLOCK = 4


def routes_of(experts: list[int], num_experts: int) -> Routes:
    """One expert for each token."""
    ids = jnp.asarray(experts, jnp.int32)[:, None]
    weights = (ids < num_experts).astype(jnp.float32)
    return Routes(ids, weights, *REFERENCE.rank_rows(ids, num_experts))


@pytest.mark.parametrize(("t", "e", "a"), [(1, 8, 2), (9, 5, 2), (17, 3, 1)])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_layout_keeps_experts_apart(t: int, e: int, a: int, data: st.DataObject) -> None:
    """Every row has a place of its own in a block of its expert, in token order; blocks in use come first, sorted."""
    routes = data.draw(routings(t, e, a))
    layout = block_layout(routes.experts, routes.ranks, routes.counts, BLOCK)
    experts, places = np.asarray(routes.experts).ravel(), np.asarray(layout.places).ravel()
    blocks = np.asarray(layout.block_experts)
    assert (places[experts == e] == BLOCK * len(blocks)).all()
    routed, places = experts[experts < e], places[experts < e]
    assert len(set(places)) == len(places)
    np.testing.assert_array_equal(blocks[places // BLOCK], routed)
    for expert in range(e):
        assert (np.diff(places[routed == expert]) == 1).all()
        assert (blocks == expert).sum() == -(-(routed == expert).sum() // BLOCK)
    assert (np.diff(blocks) >= 0).all()


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_most_blocks_are_enough_and_can_be_needed(count: int) -> None:
    """`count` rows of expert 0 and one of each other: the most that padding can cost."""
    routes = routes_of([0] * count + [1, 2], 3)
    needed = int(np.sum(-(-np.asarray(routes.counts) // BLOCK)))
    assert needed <= most_blocks(count + 2, 3, BLOCK)
    if count == 1:
        assert needed == most_blocks(count + 2, 3, BLOCK)


@pytest.mark.parametrize(("t", "e", "a"), [(1, 8, 2), (9, 5, 2)])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_permute_and_combine(t: int, e: int, a: int, data: st.DataObject) -> None:
    """Rows arrive at their places; what is in the places between is not looked at, even if it is NaN."""
    routes = data.draw(routings(t, e, a))
    layout = block_layout(routes.experts, routes.ranks, routes.counts, BLOCK)
    places = BLOCK * layout.block_experts.shape[0]
    x = normal(t, WIDTH)
    rows = interpreted("permute", places)(x, layout.places)
    routed = np.asarray(routes.experts) < e
    expected = np.broadcast_to(np.asarray(x)[:, None], (t, a, WIDTH))
    np.testing.assert_array_equal(np.asarray(rows)[np.asarray(layout.places)[routed]], expected[routed])

    parts = np.full((2, places, WIDTH), np.nan, np.float32)
    parts[:, np.asarray(layout.places)[routed]] = normal(2, int(routed.sum()), WIDTH)
    got = interpreted("combine")(parts, layout.places, routes.weights)
    expected = REFERENCE.combine(jnp.asarray(parts), layout.places, routes.weights)
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT32_ATOL)
    assert np.isfinite(got).all() and got.dtype == jnp.float32


def test_combine_is_a_weighted_sum_in_float32() -> None:
    """Against arithmetic, so that kernel and specification cannot be wrong together."""
    rows = jnp.asarray([[[1, 2], [3, 4], [5, 6]], [[10, 20], [30, 40], [50, 60]]], jnp.bfloat16)
    places, weights = jnp.asarray([[2, 0], [3, 1]], jnp.int32), jnp.asarray([[0.5, 2], [9, 3]], jnp.float32)
    expected = [[0.5 * 55 + 2 * 11, 0.5 * 66 + 2 * 22], [3 * 33, 3 * 44]]  # place 3 is none
    np.testing.assert_array_equal(interpreted("combine")(rows, places, weights), np.asarray(expected, np.float32))
    np.testing.assert_array_equal(REFERENCE.combine(rows, places, weights), np.asarray(expected, np.float32))


def test_no_tokens() -> None:
    none = jnp.zeros((0, 2), jnp.int32)
    assert interpreted("permute", 0)(jnp.zeros((0, WIDTH)), none).shape == (0, WIDTH)
    assert interpreted("combine")(jnp.zeros((1, 0, WIDTH)), none, jnp.zeros((0, 2))).shape == (0, WIDTH)
