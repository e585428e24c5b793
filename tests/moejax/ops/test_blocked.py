"""Backend `blocked` reads the chosen experts only and computes the rows that exist, up to whole blocks."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moejax.ops.expert import Expert
from moejax.ops.routing import Routing
from moejax.ops.xla.blocked import MAX_BLOCK, block_rows, blocked
from moejax.ops.xla.dense import dense
from tests.moejax.counting import Counts, count
from tests.moejax.moe.oracle import Layer, moe_loop, random_layer, route_loop

D, F = 6, 10
FLOPS_PER_ROW = 2 * 3 * D * F
FLOAT32_ATOL = 3e-6  # as in test_backends.py

run = jax.jit(blocked)


def executed(layer: Layer, x: np.ndarray, routing: Routing) -> Counts:
    names = {f"{e}.{name}": matrix for e, one in enumerate(layer.experts) for name, matrix in one._asdict().items()}
    return count(blocked, layer.experts, jnp.asarray(x), routing, names=names)


def tokens(t: int) -> np.ndarray:
    return np.random.default_rng(t).standard_normal((t, D)).astype(np.float32)


def assigned(experts: list[int], num_experts: int) -> Routing:
    """One expert per token; `num_experts` is none."""
    ids = np.array(experts, np.int32)[:, None]
    return Routing(jnp.asarray(ids), jnp.asarray((ids < num_experts).astype(np.float32)))


ASSIGNED = {
    "one token": ([3], 4),
    "all on one expert": ([2] * 19, 4),
    "two experts": ([0] * 9 + [3] * 10, 4),
    "exactly two blocks and one more row": ([1] * 16 + [0], 2),
    "padding": ([4] * 18 + [1], 4),
    "padding only": ([4] * 5, 4),
    "every expert": ([0, 1, 2, 3, 4] * 4, 5),
    "one expert in all": ([0] * 7, 1),
}


@pytest.mark.parametrize("name", ASSIGNED)
def test_work_follows_the_routing(name: str) -> None:
    """Each expert goes round ceil(rows / block) times; one that has no rows is not even read."""
    experts, num_experts = ASSIGNED[name]
    block, rows_of = block_rows(len(experts), num_experts), Counter(experts)
    trips = {e: -(-rows_of[e] // block) for e in range(num_experts)}
    counts = executed(random_layer(num_experts, D, F), tokens(len(experts)), assigned(experts, num_experts))
    for e, expected in trips.items():
        for matrix in Expert._fields:
            assert counts.products[f"{e}.{matrix}"] == expected
            assert counts.rows[f"{e}.{matrix}"] == expected * block
    assert {name.split(".")[0] for name in counts.read} == {str(e) for e, expected in trips.items() if expected}
    assert counts.flops == FLOPS_PER_ROW * block * sum(trips.values())


@settings(max_examples=15, deadline=None)
@given(experts=st.lists(st.integers(0, 4), min_size=11, max_size=11))
def test_padding_of_work_is_less_than_a_block_per_expert(experts: list[int]) -> None:
    block, rows_of = block_rows(11, 4), Counter(experts)
    counts = executed(random_layer(4, D, F), tokens(11), assigned(experts, 4))
    for e in range(4):
        assert rows_of[e] <= counts.rows[f"{e}.gate"] < rows_of[e] + block or rows_of[e] == 0
        assert counts.rows[f"{e}.gate"] == counts.rows[f"{e}.up"] == counts.rows[f"{e}.down"]
        assert (counts.rows[f"{e}.gate"] == 0) == (rows_of[e] == 0)
    assert counts.flops == FLOPS_PER_ROW * sum(counts.rows[f"{e}.gate"] for e in range(4))


def test_counting_notices_a_backend_that_computes_every_expert() -> None:
    experts, layer = [0, 0, 2], random_layer(4, D, F)
    counts = count(dense, layer.stacked, jnp.asarray(tokens(3)), assigned(experts, 4))
    assert counts.flops >= FLOPS_PER_ROW * len(experts) * 4


@settings(max_examples=25, deadline=None)
@given(chosen=st.sets(st.integers(0, 7), min_size=2, max_size=7), seed=st.integers(0, 99))
def test_experts_that_nobody_chose_may_hold_nan(chosen: set[int], seed: int) -> None:
    """The compiled program never lets a weight of theirs into a result, not even times 0."""
    layer = random_layer(8, D, F)
    unread = Expert(*(jnp.full_like(matrix, jnp.nan) for matrix in layer.experts[0]))
    logits = np.random.default_rng(seed).standard_normal((9, 8)).astype(np.float32)
    logits[:, sorted(chosen)] += 100
    routing = route_loop(logits, np.ones(9, bool), 2)
    assert set(np.asarray(routing.experts).ravel().tolist()) <= chosen
    x = tokens(9)
    got = run([one if e in chosen else unread for e, one in enumerate(layer.experts)], jnp.asarray(x), routing)
    np.testing.assert_allclose(got, moe_loop(layer, x, routing), rtol=0, atol=FLOAT32_ATOL)


def test_an_expert_that_somebody_chose_does_count() -> None:
    layer = random_layer(3, D, F)
    broken = [*layer.experts[:2], Expert(*(jnp.full_like(matrix, jnp.nan) for matrix in layer.experts[2]))]
    got = np.asarray(run(broken, jnp.asarray(tokens(2)), assigned([0, 2], 3)))
    assert np.isfinite(got[0]).all() and np.isnan(got[1]).all()


rows, experts = st.integers(1, 1 << 16), st.integers(1, 64)


@given(rows=rows, num_experts=experts)
def test_block_is_a_power_of_two_in_bounds(rows: int, num_experts: int) -> None:
    block = block_rows(rows, num_experts)
    assert block & (block - 1) == 0
    assert 2 <= block <= MAX_BLOCK == 128


@given(rows=rows, more=rows, num_experts=experts, more_experts=experts)
def test_block_grows_with_the_rows_of_an_expert(rows: int, more: int, num_experts: int, more_experts: int) -> None:
    assert block_rows(rows, num_experts) <= block_rows(rows + more, num_experts)
    assert block_rows(rows, num_experts) >= block_rows(rows, num_experts + more_experts)


@given(rows=rows, num_experts=experts)
def test_an_expert_of_average_load_takes_one_block(rows: int, num_experts: int) -> None:
    average = -(-rows // num_experts)
    assert block_rows(rows, num_experts) >= min(average, MAX_BLOCK)
    assert block_rows(rows, num_experts) <= max(2, 4 * average)
