"""Dispatch `replicated`: every device of the group holds all tokens, computes its part, and the parts are summed.

No token moves. One all-reduce over (expert, tensor) per layer: 2 (G - 1) / G of the tokens.
"""

from jax import Array
from jaxtyping import Bool, Float

from moejax.moe.dispatch import Dispatched, ExpertGroup


def replicated(x: Float[Array, "T D"], valid: Bool[Array, " T"], group: ExpertGroup) -> Dispatched:
    """On entry tokens are whole over (expert, tensor) and split over data; so is the partial sum on exit."""
    experts, local = group.route_here(x, valid)
    return Dispatched(group.compute(x, local), experts, group.count(local))
