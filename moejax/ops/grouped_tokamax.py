"""Grouped products by tokamax, an optional package of tuned GPU kernels (github.com/openxla/tokamax)."""

import importlib
import importlib.util
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from moejax.ops.reference import PRECISE
from moejax.runtime.platform import current_device

PACKAGE = "tokamax"
# In the order in which they are tried. tokamax's own list ends with XLA, which would expand the product over all
# experts without a word; XLA is asked for only where there is no GPU, in tests.
ON_GPU = ("mosaic", "triton")
ELSEWHERE = "xla"
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
    """`reference.grouped_matmul`. Blocks come sorted by expert, so a group is all blocks of one, padding included.

    Raises:
        NotImplementedError: where tokamax has no kernel for these arrays on this GPU, with its reasons.
    """
    blocks = jnp.sum(block_experts[None, :] == jnp.arange(w.shape[0])[:, None], axis=1, dtype=jnp.int32)
    try:
        return _package().ragged_dot_general(
            rows,
            w,
            group_sizes=blocks * (rows.shape[0] // max(1, block_experts.shape[0])),
            ragged_dot_dimension_numbers=_GROUPED,
            precision=PRECISE if rows.dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
            implementation=ON_GPU if current_device().platform == "gpu" else ELSEWHERE,
        )
    except (ExceptionGroup, ValueError) as error:  # what each refused, or the name of one that did not import
        refusals = error.exceptions if isinstance(error, ExceptionGroup) else [error]
        reasons = "; ".join(" ".join(str(one).split()) for one in refusals)
        raise NotImplementedError(
            f"tokamax has no kernel for {rows.dtype} rows {rows.shape} and weights {w.shape} on "
            f"{current_device().kind} ({reasons}); use expert_backend='pallas'"
        ) from error


def _package() -> Any:
    """tokamax. 0.0.12, which Python 3.11 gets, would read the flags of this program as its own and refuse them."""
    flags = importlib.import_module("absl.flags").FLAGS
    if not flags.is_parsed():
        flags(sys.argv[:1])
    return importlib.import_module(PACKAGE)


def grouped_gate_up(
    rows: Float[Array, "P D"],
    gate: Float[Array, "E F D"],
    up: Float[Array, "E F D"],
    block_experts: Int[Array, " blocks"],
) -> Float[Array, "P F"]:
    """`reference.grouped_gate_up`."""
    gated, upped = grouped_matmul(rows, gate, block_experts), grouped_matmul(rows, up, block_experts)
    return (jax.nn.silu(gated) * upped).astype(rows.dtype)
