"""Rows sorted by expert and back. R = T x A rows: one for every (token, chosen expert) pair."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from moejax.ops.routing import Routing


class Permutation(NamedTuple):
    """Rows in expert order: row `order[p]` is at sorted place p, and row i is at place `places[i]`. Expert e has
    `counts[e]` rows, the first of them at place `starts[e]`. Rows routed to no expert come last, counted nowhere.
    """

    order: Int[Array, " R"]
    places: Int[Array, " R"]
    counts: Int[Array, " E"]
    starts: Int[Array, " E"]


def sort_by_expert(routing: Routing, num_experts: int) -> Permutation:
    """The stable permutation that groups the rows of each expert."""
    experts = routing.experts.reshape(-1)
    ids = jnp.arange(num_experts)[:, None]
    counts = jnp.sum(experts[None, :] == ids, axis=1, dtype=jnp.int32)
    starts = jnp.sum(experts[None, :] < ids, axis=1, dtype=jnp.int32)
    order = jnp.argsort(experts, stable=True)
    return Permutation(order, jnp.argsort(order), counts, starts)


def combine(rows: Float[Array, "R D"], permutation: Permutation, routing: Routing) -> Float[Array, "T D"]:
    """Each token's weighted sum of its A results, given in sorted order; float32.

    Rows routed to no expert count as 0 whatever is in them.
    """
    t, a = routing.experts.shape
    results = rows[permutation.places].reshape(t, a, -1)
    chosen = (routing.experts < permutation.counts.shape[0])[..., None]
    return jnp.sum(jnp.where(chosen, results.astype(jnp.float32), 0.0) * routing.weights[..., None], axis=1)
