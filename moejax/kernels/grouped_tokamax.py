"""Grouped products by tokamax, an optional package of tuned GPU kernels (github.com/openxla/tokamax)."""

import importlib
import importlib.util

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

PACKAGE = "tokamax"
# Rows [P, I] in groups, times [E, O, I]: the weights as they lie, without a transposition.
_GROUPED = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)


def missing() -> str | None:
    """Why tokamax cannot be used, or None."""
    return None if importlib.util.find_spec(PACKAGE) else "needs tokamax, which is not installed: pip install tokamax"


def grouped_matmul(
    rows: Float[Array, "P I"], w: Float[Array, "E O I"], block_experts: Int[Array, " blocks"]
) -> Float[Array, "P O"]:
    """`reference.grouped_matmul`. Blocks come sorted by expert, so a group is all blocks of one, padding included."""
    blocks = jnp.sum(block_experts[None, :] == jnp.arange(w.shape[0])[:, None], axis=1, dtype=jnp.int32)
    return importlib.import_module(PACKAGE).ragged_dot_general(
        rows,
        w,
        group_sizes=blocks * (rows.shape[0] // block_experts.shape[0]),
        ragged_dot_dimension_numbers=_GROUPED,
        preferred_element_type=jnp.float32,
    )


def grouped_gate_up(
    rows: Float[Array, "P D"],
    gate: Float[Array, "E F D"],
    up: Float[Array, "E F D"],
    block_experts: Int[Array, " blocks"],
) -> Float[Array, "P F"]:
    """`reference.grouped_gate_up`."""
    gated, upped = grouped_matmul(rows, gate, block_experts), grouped_matmul(rows, up, block_experts)
    return (jax.nn.silu(gated) * upped).astype(rows.dtype)
