"""Backend `native`: one call of a compiled kernel per layer, for CPUs (`moejax/native/`).

It reads each chosen expert's weights once, however many rows it has, and sorts rows itself.
"""

from collections.abc import Sequence

from jax import Array
from jaxtyping import Float

from moejax.moe.router import Routing
from moejax.moe.weights import Expert
from moejax.native import expert_ffn


def native(experts: Sequence[Expert], x: Float[Array, "T D"], routing: Routing) -> Float[Array, "T D"]:
    """Weighted sum of the chosen experts' results for every token; float32 result."""
    return expert_ffn(experts, x, routing.experts, routing.weights)
