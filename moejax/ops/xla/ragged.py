"""Expert backend `ragged`: XLA's grouped product over rows sorted by expert.

XLA expands it over all experts on CPU and on CUDA (E times the FLOPs), so `auto` never takes it there. For TPUs it has
kernels that multiply each row by its own expert, of weights with their inputs first (`weights/inputs_first.py`).
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from moejax.ops.expert import Expert
from moejax.ops.routing import Routing
from moejax.ops.xla.permutation import combine, sort_by_expert
from moejax.weights.inputs_first import inputs_first
from moejax.weights.storage import precision_of


def ragged(experts: Expert, x: Float[Array, "T D"], routing: Routing) -> Float[Array, "T D"]:
    """Weighted sum of the chosen experts' results for every token; float32 result."""
    gate, up, down = map(inputs_first, experts)
    permutation = sort_by_expert(routing, gate.shape[0])
    rows = x[permutation.order // routing.experts.shape[1]]

    def product(rows: Array, weights: Array) -> Array:
        return lax.ragged_dot(
            rows,
            weights,
            permutation.counts,
            precision=precision_of(rows.dtype),
            preferred_element_type=jnp.float32,
        )

    hidden = jax.nn.silu(product(rows, gate)) * product(rows, up)
    return combine(product(hidden.astype(x.dtype), down), permutation, routing)
