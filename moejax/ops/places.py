"""From experts to the places that hold them, by tables that a program is given when it runs, and to one device's."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from moejax.ops.routing import Routing


def place(routing: Routing, table: Int[Array, "3 P"], num_experts: int) -> Routing:
    """The same with the place of each expert, P for none, in the place of its id.

    An expert in several places shares its rows among them, by the number of the token. Sums of comparisons instead of
    lookups: P is small, and this fuses into one elementwise kernel.

    Args:
        table: what each place holds (`PhysicalExperts.tables`).
    """
    held, which, replicas = table
    places = held.shape[0]
    tokens = jnp.arange(routing.experts.shape[0])[:, None, None]
    holds = routing.experts[..., None] == held[None, None, :]
    if places == num_experts:  # every expert has one place
        chosen = holds & (routing.experts < num_experts)[..., None]
    else:
        turn = tokens % replicas[None, None, :] == which[None, None, :]
        chosen = holds & turn & (routing.experts < num_experts)[..., None]
    ids = jnp.sum(jnp.where(chosen, jnp.arange(places)[None, None, :] - places, 0), axis=-1) + places
    ids = ids.astype(jnp.int32)
    if routing.ranks is None or routing.counts is None or places != num_experts:
        return Routing(ids, routing.weights)
    counts = jnp.sum(jnp.where(held[:, None] == jnp.arange(num_experts)[None, :], routing.counts[None, :], 0), axis=1)
    return Routing(ids, routing.weights, routing.ranks, counts)


def local(placed: Routing, first: Int[Array, "..."] | int, places: int) -> Routing:
    """The same with numbers that count the `places` places from `first` on from 0.

    What is in another place gets number `places` and weight 0: routed to no expert here.
    """
    ids = placed.experts - first
    here = (ids >= 0) & (ids < places)
    return Routing(jnp.where(here, ids, places), jnp.where(here, placed.weights, 0.0))
