"""Backend `native`: compiled kernels for CPUs (`moejax/ops/native/`).

One call per layer reads each chosen expert's weights once, however many rows it has, and sorts rows itself.
"""

from collections.abc import Sequence

from jax import Array
from jaxtyping import Bool, Float

from moejax.ops import native as kernels
from moejax.ops.expert import Expert
from moejax.ops.routing import Routing


def native(experts: Sequence[Expert], x: Float[Array, "T D"], routing: Routing) -> Float[Array, "T D"]:
    """Weighted sum of the chosen experts' results for every token; float32 result."""
    return kernels.expert_ffn(experts, x, routing.experts, routing.weights)


def native_route(logits: Float[Array, "T E"], valid: Bool[Array, " T"], experts_per_token: int) -> Routing:
    """`router.route`."""
    return Routing(*kernels.route(logits, valid, experts_per_token))
