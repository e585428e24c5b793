"""The prefill kernels, interpreted: sorted rows in blocks, empty experts, all rows on one, rows at a block's edge."""

import importlib
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moejax.ops.reference import PRECISE
from moejax.ops.routing import Routing
from moejax.ops.triton import grouped, grouped_tokamax
from moejax.ops.triton.block_layout import block_layout
from moejax.ops.triton.kernels import KERNELS, Kernels
from moejax.runtime.platform import H100, tracing_for
from tests.messages import refuses
from tests.moejax.ops.triton.cases import FLOAT32_ATOL, REFERENCE, interpreted, normal, poisoned, routings, top

BLOCK = 4


def layer(run: Any, weights: tuple, x: jax.Array, routes: Routing, block: int = BLOCK) -> jax.Array:
    """All of an expert layer by its pieces; `run(name)` is a kernel."""
    assert routes.ranks is not None and routes.counts is not None
    layout = block_layout(routes.experts, routes.ranks, routes.counts, block)
    # NaN in all places that hold no row: nothing of them may reach a token.
    rows = jnp.full((block * layout.block_experts.shape[0], x.shape[1]), jnp.nan, x.dtype)
    rows = rows.at[layout.places].set(x[:, None, :], mode="drop")
    hidden = run("grouped_gate_up")(rows, weights[0], weights[1], layout.block_experts)
    results = run("grouped_matmul")(hidden, weights[2], layout.block_experts)
    return REFERENCE.combine(results[None], layout.places, routes.weights)


@pytest.mark.parametrize(("t", "e", "a", "d", "f"), [(9, 5, 2, 16, 24), (13, 3, 1, 33, 70)])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_equals_reference(t: int, e: int, a: int, d: int, f: int, data: st.DataObject) -> None:
    routes = data.draw(routings(t, e, a))
    weights, x = (normal(e, f, d), normal(e, f, d, seed=1), normal(e, d, f)), normal(t, d)
    got = layer(interpreted, poisoned(weights, routes.counts), x, routes)
    expected = REFERENCE.expert_ffn(*weights, x, routes.experts, routes.weights)
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT32_ATOL)


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_rows_around_the_edge_of_a_block(count: int) -> None:
    """`count` of 2 BLOCK rows on expert 0, the others on expert 2."""
    experts = jnp.where(jnp.arange(2 * BLOCK) < count, 0, 2)[:, None].astype(jnp.int32)
    routes = Routing(experts, jnp.ones(experts.shape), *REFERENCE.rank_rows(experts, 3))
    weights, x = (normal(3, 12, 8), normal(3, 12, 8, seed=1), normal(3, 8, 12)), normal(2 * BLOCK, 8)
    expected = REFERENCE.expert_ffn(*weights, x, routes.experts, routes.weights)
    np.testing.assert_allclose(layer(interpreted, weights, x, routes), expected, rtol=0, atol=FLOAT32_ATOL)


def test_more_outputs_than_run_together() -> None:
    """Output blocks come in groups of the largest divisor of their number."""
    block_experts = jnp.asarray([0, 1, 2], jnp.int32)  # block 2 belongs to no expert
    rows, w = normal(12, 16), normal(2, 1400, 16)  # 6 blocks of 256 outputs, in groups of 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped, "OUTPUTS_TOGETHER", 4)
        got = grouped.grouped_matmul(rows, w, block_experts, interpret=True)
    expected = REFERENCE.grouped_matmul(rows, w, block_experts)
    np.testing.assert_allclose(got[:8], expected[:8], rtol=0, atol=FLOAT32_ATOL)


def test_bfloat16_keeps_float32_sums() -> None:
    rows, w = normal(8, 32, dtype="bfloat16"), normal(2, 16, 32, dtype="bfloat16")
    block_experts = jnp.asarray([0, 1], jnp.int32)
    got = interpreted("grouped_matmul")(rows, w, block_experts)
    assert got.dtype == jnp.float32
    exact = np.concatenate(
        [np.asarray(rows[4 * e : 4 * e + 4], np.float64) @ np.asarray(w[e], np.float64).T for e in range(2)]
    )
    np.testing.assert_allclose(got, exact, rtol=0, atol=FLOAT32_ATOL)
    hidden = interpreted("grouped_gate_up")(rows, w, w, block_experts)
    assert hidden.dtype == jnp.bfloat16


def test_no_rows() -> None:
    assert interpreted("grouped_matmul")(jnp.zeros((0, 8)), normal(2, 12, 8), jnp.zeros((0,), jnp.int32)).shape == (
        0,
        12,
    )


class StandIn:
    """With the signature of tokamax 0.0.12 and 0.0.17, which document that of `jax.lax.ragged_dot_general`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any]] = []

    def ragged_dot_general(
        self,
        lhs: Any,
        rhs: Any,
        group_sizes: Any,
        ragged_dot_dimension_numbers: Any,
        precision: Any = None,
        preferred_element_type: Any = None,
        *,
        implementation: Any = None,
    ) -> jax.Array:
        self.calls.append((implementation, precision))
        return jax.lax.ragged_dot_general(
            lhs, rhs, group_sizes, ragged_dot_dimension_numbers, precision, preferred_element_type
        )


def test_tokamax_gets_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tokamax itself makes of them is tested where it is installed (test_backend.py)."""
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, grouped_tokamax.PACKAGE, stand_in)
    tokamax: Kernels = KERNELS["tokamax"]
    routes = REFERENCE.route(normal(9, 4), jnp.ones(9, bool), top(2))
    weights, x = (normal(4, 12, 8), normal(4, 12, 8, seed=1), normal(4, 8, 12)), normal(9, 8)
    assert routes.ranks is not None and routes.counts is not None
    layout = block_layout(routes.experts, routes.ranks, routes.counts, BLOCK)
    rows = REFERENCE.permute(x, layout.places, BLOCK * layout.block_experts.shape[0])
    hidden = tokamax.grouped_gate_up(rows, weights[0], weights[1], layout.block_experts)
    results = tokamax.grouped_matmul(hidden, weights[2], layout.block_experts)
    expected = REFERENCE.expert_ffn(*weights, x, routes.experts, routes.weights)
    got = REFERENCE.combine(results[None], layout.places, routes.weights)
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT32_ATOL)
    assert stand_in.calls == [("xla", PRECISE)] * 3  # no GPU here


def test_tokamax_takes_no_path_that_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU its own list would end with XLA, which expands the product over all experts; 16 bits need no more."""
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, grouped_tokamax.PACKAGE, stand_in)
    with tracing_for(H100):
        grouped_tokamax.grouped_matmul(
            normal(8, 8, dtype="bfloat16"), normal(2, 12, 8, dtype="bfloat16"), jnp.asarray([0, 1], jnp.int32)
        )
    assert stand_in.calls == [(("mosaic", "triton"), None)]


def test_tokamax_does_not_read_this_programs_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags that nobody parsed yet it would take from the command line, and stop at those of moejax."""
    absl = importlib.import_module("absl.flags")
    monkeypatch.setattr(absl, "FLAGS", absl.FlagValues())
    monkeypatch.setattr(sys, "argv", ["moejax", "decode", "demo", "--expert-backend", "tokamax"])
    monkeypatch.setitem(sys.modules, grouped_tokamax.PACKAGE, StandIn())
    grouped_tokamax.grouped_matmul(normal(8, 8), normal(2, 12, 8), jnp.asarray([0, 1], jnp.int32))
    assert absl.FLAGS.is_parsed()


@pytest.mark.parametrize(
    "refusal",
    [
        ExceptionGroup("all failed", [NotImplementedError("no such\n dtype"), NotImplementedError("no such GPU")]),
        ValueError("no such\n dtype; no such GPU"),
    ],
)
def test_a_refusal_of_tokamax_is_one_line(refusal: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **settings: Any) -> None:
        raise refusal

    monkeypatch.setitem(sys.modules, grouped_tokamax.PACKAGE, types.SimpleNamespace(ragged_dot_general=refuse))
    shapes = ("float32", "(8, 8)", "(2, 12, 8)")
    facts = (*shapes, "NVIDIA H100 80GB HBM3", "no such dtype", "no such GPU", "expert_backend='pallas'")
    with tracing_for(H100), refuses(NotImplementedError, "tokamax", *facts):
        grouped_tokamax.grouped_matmul(normal(8, 8), normal(2, 12, 8), jnp.asarray([0, 1], jnp.int32))
