"""Backend `ragged`: XLA's grouped product over rows sorted by expert.

XLA expands it over all experts on CPU and on CUDA (E times the FLOPs), so `auto` never takes it there; it is the
reference for grouped products, and the one to take where XLA has a real one.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from moejax.ops.expert import Expert
from moejax.ops.routing import Routing
from moejax.ops.xla.permutation import combine, sort_by_expert


def ragged(experts: Expert, x: Float[Array, "T D"], routing: Routing) -> Float[Array, "T D"]:
    """Weighted sum of the chosen experts' results for every token; float32 result."""
    permutation = sort_by_expert(routing, experts.gate.shape[0])
    rows = x[permutation.order // routing.experts.shape[1]]

    def product(rows: Array, weights: Array) -> Array:
        return lax.ragged_dot(rows, weights.swapaxes(1, 2), permutation.counts, preferred_element_type=jnp.float32)

    hidden = jax.nn.silu(product(rows, experts.gate)) * product(rows, experts.up)
    return combine(product(hidden.astype(x.dtype), experts.down), permutation, routing)
