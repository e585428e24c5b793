"""Top-k routing (Jiang et al., arXiv:2401.04088, section 2.1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int


class Routing(NamedTuple):
    """Where each token goes. A row routed to no expert has id E in every place, and weight 0.

    experts: int32 [T, A], best first, ties to the lower id.  weights: float32 [T, A], summing to 1 per token.
    ranks, counts: each row's rank among the rows of its expert, int32 [T, A], and rows per expert, int32 [E], where the
    router knows them; whoever moves tokens or renumbers experts makes a new Routing without them.
    """

    experts: Int[Array, "T A"]
    weights: Float[Array, "T A"]
    ranks: Int[Array, "T A"] | None = None
    counts: Int[Array, " E"] | None = None


def route(logits: Float[Array, "T E"], valid: Bool[Array, " T"], experts_per_token: int) -> Routing:
    """Softmax over all experts, the best `experts_per_token` of them, renormalised to sum to 1; all in float32."""
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    weights, experts = lax.top_k(probabilities, experts_per_token)
    weights = weights / weights.sum(axis=-1, keepdims=True)
    valid = valid[:, None]
    return Routing(jnp.where(valid, experts, logits.shape[1]), jnp.where(valid, weights, 0.0))
