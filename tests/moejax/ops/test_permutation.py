"""Rows sorted by expert, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moejax.ops.routing import Routing
from moejax.ops.xla.permutation import combine, sort_by_expert

SHAPES = [(1, 1, 1), (1, 2, 5), (5, 2, 3), (8, 4, 4)]  # T A E
SUM_ATOL = 1e-6  # at most 4 terms of order 1, summed in float32

run_sort = jax.jit(sort_by_expert, static_argnums=1)
run_combine = jax.jit(lambda rows, routing, e: combine(rows, sort_by_expert(routing, e), routing), static_argnums=2)


def drawn_routing(data: st.DataObject, t: int, a: int, e: int) -> Routing:
    """Any expert in any place, E (no expert) included."""
    experts = data.draw(arrays(np.int32, (t, a), elements=st.integers(0, e)))
    weights = data.draw(arrays(np.int8, (t, a), elements=st.integers(0, 4))).astype(np.float32) / 4
    return Routing(jnp.asarray(experts), jnp.asarray(np.where(experts < e, weights, 0).astype(np.float32)))


@pytest.mark.parametrize(("t", "a", "e"), SHAPES)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_rows_of_each_expert_lie_together(t: int, a: int, e: int, data: st.DataObject) -> None:
    routing = drawn_routing(data, t, a, e)
    flat = np.asarray(routing.experts).reshape(-1)
    permutation = run_sort(routing, e)
    order = np.asarray(permutation.order)
    assert sorted(order) == list(range(t * a))
    expected = [row for expert in range(e + 1) for row in range(t * a) if flat[row] == expert]
    assert order.tolist() == expected, "rows of one expert keep their order, rows of no expert come last"
    for expert in range(e):
        start, count = int(permutation.starts[expert]), int(permutation.counts[expert])
        assert count == np.count_nonzero(flat == expert)
        assert (flat[order[start : start + count]] == expert).all()


@pytest.mark.parametrize(("t", "a", "e"), SHAPES)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_combine_undoes_the_order_and_sums(t: int, a: int, e: int, data: st.DataObject) -> None:
    routing = drawn_routing(data, t, a, e)
    results = np.random.default_rng(0).standard_normal((t * a, 3)).astype(np.float32)
    order = np.asarray(run_sort(routing, e).order)
    got = run_combine(jnp.asarray(results[order]), routing, e)
    weights = np.where(np.asarray(routing.experts) < e, np.asarray(routing.weights), 0)
    expected = (results.reshape(t, a, 3) * weights[..., None]).sum(axis=1)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=SUM_ATOL)


def test_rows_of_no_expert_count_as_zero_even_if_they_are_nan() -> None:
    routing = Routing(jnp.array([[2, 0], [2, 2]]), jnp.array([[0.0, 1.0], [0.0, 0.0]]))
    rows = jnp.full((4, 2), jnp.nan).at[0].set(7.0)  # the only row of an expert is sorted first
    np.testing.assert_array_equal(run_combine(rows, routing, 2), [[7, 7], [0, 0]])
