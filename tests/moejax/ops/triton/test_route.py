"""Routing and ranks, interpreted, against the specification, and the specification against a loop over tokens."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moejax.ops.routing import Routing
from moejax.ops.triton.blocks import route_block
from moejax.ops.triton.kernels import KERNELS
from moejax.weights.placement import PhysicalExperts
from tests.moejax.moe.oracle import route_loop
from tests.moejax.ops.triton.cases import FLOAT32_ATOL, REFERENCE, interpreted, routings, top

# T E A: one token, a power of two and its neighbours, small and large E that are none, the largest E, every A.
SHAPES = [(1, 2, 1), (1, 8, 2), (8, 3, 2), (17, 5, 4), (5, 127, 4), (9, 128, 2)]
SEVERAL_BLOCKS = (300, 8, 2)


def check(got: Routing, expected: Routing) -> None:
    for name in ("experts", "ranks", "counts"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
        assert getattr(got, name).dtype == jnp.int32
    np.testing.assert_allclose(got.weights, expected.weights, rtol=0, atol=FLOAT32_ATOL)
    assert got.weights.dtype == jnp.float32


@pytest.mark.parametrize("change", [{}, {"renormalise": False, "scale": 2.5}], ids=["mixtral", "neither"])
@pytest.mark.parametrize(("t", "e", "a"), SHAPES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_route_equals_reference(t: int, e: int, a: int, change: dict[str, Any], data: st.DataObject) -> None:
    """Small integers, so that there are ties, with infinities and NaN among them."""
    policy = dataclasses.replace(top(a), **change)
    odd = st.sampled_from([np.nan, np.inf, -np.inf, 300.0, -300.0])
    logits = data.draw(arrays(np.float32, (t, e), elements=st.integers(-2, 2).map(float) | odd, fill=st.just(0.0)))
    valid = data.draw(arrays(bool, (t,)))
    check(interpreted("route", policy)(logits, valid), REFERENCE.route(jnp.asarray(logits), jnp.asarray(valid), policy))


@pytest.mark.parametrize(("t", "e", "a"), SHAPES)
def test_reference_equals_loop(t: int, e: int, a: int) -> None:
    logits = np.random.default_rng(t).integers(-2, 3, (t, e)).astype(np.float32)
    valid = np.arange(t) % 3 != 1
    got, expected = (
        REFERENCE.route(jnp.asarray(logits), jnp.asarray(valid), top(a)),
        route_loop(logits, valid, a),
    )
    np.testing.assert_array_equal(got.experts, expected.experts)
    np.testing.assert_allclose(got.weights, expected.weights, rtol=0, atol=FLOAT32_ATOL)
    assert got.ranks is not None
    seen = [0] * e
    for token in range(t):
        for place, expert in enumerate(np.asarray(got.experts[token])):
            assert got.ranks[token, place] == (seen[expert] if expert < e else 0)
            if expert < e:
                seen[expert] += 1
    np.testing.assert_array_equal(got.counts, seen)


def test_several_blocks() -> None:
    t, e, a = SEVERAL_BLOCKS
    assert t > route_block(t, e).tokens, "this is one block"
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.integers(-3, 4, (t, e)), jnp.float32)
    valid = jnp.asarray(rng.random(t) < 0.9)
    check(
        interpreted("route", top(a))(logits, valid),
        REFERENCE.route(logits, valid, top(a)),
    )


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_row_has_nan_weights_and_valid_experts(broken: float, renormalise: bool) -> None:
    logits = np.zeros((3, 5), np.float32)
    logits[1, 3] = broken
    policy = dataclasses.replace(top(2), renormalise=renormalise)
    routes = interpreted("route", policy)(logits, np.ones(3, bool))
    assert np.isnan(routes.weights[1]).all() and not np.isnan(routes.weights[jnp.array([0, 2])]).any()
    np.testing.assert_array_equal(routes.experts, [[0, 1]] * 3)
    np.testing.assert_array_equal(routes.counts, [3, 3, 0, 0, 0])


@pytest.mark.parametrize(("t", "e", "a"), [(9, 8, 2), (1, 60, 4)])
def test_bfloat16_logits(t: int, e: int, a: int) -> None:
    """Rounded to 8 bits, so that 60 of them have ties."""
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((t, e)), jnp.bfloat16)
    check(
        interpreted("route", top(a))(logits, np.ones(t, bool)),
        REFERENCE.route(logits, jnp.ones(t, bool), top(a)),
    )


@pytest.mark.parametrize(("first", "places"), [(None, 8), (0, 4), (4, 4), (6, 2)])
@pytest.mark.parametrize("tokens", [3, 300])
def test_places_of_one_device(tokens: int, first: int | None, places: int) -> None:
    """The experts that were chosen, and where those are that this device holds, with their ranks and counts."""
    random = np.random.default_rng(tokens)
    logits, valid = random.standard_normal((tokens, 8)).astype(np.float32), random.random(tokens) < 0.8
    table = PhysicalExperts(8, (tuple(random.permutation(8).tolist()),)).tables()[0]
    args = (logits, jnp.asarray(valid), top(2), jnp.asarray(table), None if first is None else jnp.int32(first), places)
    experts, here = KERNELS["interpret"].route_here(*args)
    expected_experts, expected = REFERENCE.route_here(*args)
    np.testing.assert_array_equal(experts, expected_experts)
    check(here, expected)


def test_places_of_replicas_are_the_reference_s() -> None:
    table = jnp.asarray(PhysicalExperts(4, ((0, 1, 2, 3, 1, 4),)).tables()[0])
    args = (
        np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32),
        jnp.ones(9, bool),
        top(2),
        table,
        None,
        6,
    )
    experts, here = KERNELS["interpret"].route_here(*args)
    expected_experts, expected = REFERENCE.route_here(*args)
    np.testing.assert_array_equal(experts, expected_experts)
    np.testing.assert_array_equal(here.experts, expected.experts)
    assert here.ranks is None and 4 in np.asarray(here.experts)


def test_no_tokens() -> None:
    check(
        interpreted("route", top(2))(jnp.zeros((0, 8)), jnp.zeros((0,), bool)),
        REFERENCE.route(jnp.zeros((0, 8)), jnp.zeros((0,), bool), top(2)),
    )


@pytest.mark.parametrize(("t", "e", "a"), [(0, 8, 2), (1, 8, 2), (17, 5, 2)])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_rank_rows_equals_reference(t: int, e: int, a: int, data: st.DataObject) -> None:
    """Ranks of rows that a dispatch has renumbered: only expert ids are given."""
    routes = data.draw(routings(t, e, a)) if t else REFERENCE.route(jnp.zeros((0, e)), jnp.zeros((0,), bool), top(a))
    ranks, counts = interpreted("rank_rows", e)(routes.experts)
    np.testing.assert_array_equal(ranks, routes.ranks)
    np.testing.assert_array_equal(counts, routes.counts)


def test_rank_rows_of_several_blocks() -> None:
    t, e, a = SEVERAL_BLOCKS
    logits = jnp.asarray(np.random.default_rng(1).standard_normal((t, e)), jnp.float32)
    routes = REFERENCE.route(logits, jnp.arange(t) % 5 > 0, top(a))
    ranks, counts = interpreted("rank_rows", e)(routes.experts)
    np.testing.assert_array_equal(ranks, routes.ranks)
    np.testing.assert_array_equal(counts, routes.counts)
