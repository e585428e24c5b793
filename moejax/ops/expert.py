"""The three matrices of an expert."""

from typing import NamedTuple

import jax
from jax import Array
from jaxtyping import Float

from moejax.ops.operations import linear


class Expert(NamedTuple):
    """One expert's weights, or those of E experts with a leading axis E."""

    gate: Float[Array, "*E F D"]
    up: Float[Array, "*E F D"]
    down: Float[Array, "*E D F"]


def feed_forward(expert: Expert, x: Float[Array, "rows D"]) -> Float[Array, "rows D"]:
    """down(silu(gate x) * up x) of one expert; float32 result (SwiGLU, Shazeer, arXiv:2002.05202)."""
    hidden = jax.nn.silu(linear(x, expert.gate)) * linear(x, expert.up)
    return linear(hidden.astype(x.dtype), expert.down)
