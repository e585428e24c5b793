"""Dispatch `all_to_all`: each device along `expert` sends every token to just the devices that own its experts.

Lossless with static shapes: a slot for every token and destination, so nothing can overflow, whatever the routing. A
destination combines its experts' results of a token before they return, so a token takes one row each way. Three
all-to-alls over expert (tokens, routing, results), then an all-reduce over tensor.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from moejax.moe.dispatch import Dispatched, ExpertGroup
from moejax.ops.routing import Routing


def all_to_all(x: Float[Array, "Tl D"], valid: Bool[Array, " T"], group: ExpertGroup) -> Dispatched:
    """On entry and on exit tokens are split over (data, expert) and whole over tensor; T = Tl x peers."""
    routing = group.route(x, group.mine(valid))
    owners = jnp.arange(group.peers)[:, None, None]
    wanted = group.local(Routing(routing.experts[None], routing.weights[None]), owners)  # peers Tl A
    has_expert = jnp.any(wanted.experts < group.local_experts, axis=-1, keepdims=True)
    tokens = _exchange(jnp.where(has_expert, x[None], jnp.zeros((), x.dtype)), group)
    # Ids and weights travel as one array of bits: a collective costs its latency, however small it is.
    bits = jnp.concatenate([wanted.experts, lax.bitcast_convert_type(wanted.weights, jnp.int32)], axis=-1)
    ids, weights = jnp.split(_exchange(bits, group), 2, axis=-1)
    local = Routing(ids, lax.bitcast_convert_type(weights, jnp.float32))
    part = group.compute(tokens, local).astype(x.dtype)
    returned = _exchange(part.reshape(group.peers, *x.shape), group).reshape(group.peers, *x.shape)
    y = jnp.sum(returned.astype(jnp.float32), axis=0).astype(x.dtype)
    return Dispatched(lax.psum(y, group.tensor), routing.experts, group.count(local))


def _exchange(slots: Array, group: ExpertGroup) -> Array:
    """Slot i goes to device i along `expert`; returns what came from every device, in their order, as rows [T, ...]."""
    received = lax.all_to_all(slots, group.expert, split_axis=0, concat_axis=0)
    return received.reshape(-1, *slots.shape[2:])
