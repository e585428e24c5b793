"""What every dispatch is given and gives back. Each is one file beside this one and a row in `split.DISPATCHES`."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from moejax._sharding import MeshAxes
from moejax.moe.split import DISPATCHES, DispatchName
from moejax.ops.places import local
from moejax.ops.routing import Routing


@dataclass(frozen=True, kw_only=True)
class ExpertGroup:
    """The devices that together hold all experts, seen from one of them (inside `shard_map`).

    expert, tensor: the mesh axes that experts and their hidden axis are split over; () where they are whole.
    peers: devices along `expert`.  local_places: places for experts on this device (Pl = P / peers).
    route: the router, (x [T, D], valid [T]) -> Routing with the ids of all E experts.
    place: the same with the places of the experts [0, P) for their ids.
    route_here: both at once, and `local`: the experts that tokens chose [T, A], and their routing to this device.
    compute: this device's experts, (x [T, D], routing with local places) -> float32 [T, D], a part of the sum.
    """

    expert: MeshAxes
    tensor: MeshAxes
    peers: int
    local_places: int
    route: Callable[[Float[Array, "T D"], Bool[Array, " T"]], Routing]
    place: Callable[[Routing], Routing]
    route_here: Callable[[Float[Array, "T D"], Bool[Array, " T"]], tuple[Int[Array, "T A"], Routing]]
    compute: Callable[[Float[Array, "T D"], Routing], Float[Array, "T D"]]

    def local(self, placed: Routing, owner: Int[Array, "..."] | None = None) -> Routing:
        """The same with numbers that count the places of device `owner` (None: this one) from 0.

        What is in another device's place gets number Pl and weight 0: routed to no expert here.
        """
        if owner is None and not self.expert:
            return placed  # with all that its router found out besides
        owner = lax.axis_index(self.expert) if owner is None else owner
        return local(placed, owner * self.local_places, self.local_places)

    def mine(self, x: Array) -> Array:
        """This device's share of rows [peers x T, ...] that lie in the order of the devices along `expert`."""
        return x.reshape(self.peers, -1, *x.shape[1:])[lax.axis_index(self.expert)]

    def count(self, local: Routing) -> Int[Array, " Pl"]:
        """Rows that each place of this device computes."""
        if local.counts is not None:
            return local.counts
        ids = jnp.arange(self.local_places)[:, None]
        return jnp.sum(local.experts.reshape(1, -1) == ids, axis=1, dtype=jnp.int32)


class Dispatched(NamedTuple):
    """What one device has after its experts computed.

    partial: of its own tokens [Tl, D], still to be summed over the mesh axes that its row of `DISPATCHES` names
    (`unreduced`): whoever called adds what else there is of the same tokens, and reduces once.
    experts: that its own tokens chose [Tl, A], E where padding.  rows: that each of its places computed [Pl].
    """

    partial: Float[Array, "Tl D"]
    experts: Int[Array, "Tl A"]
    rows: Int[Array, " Pl"]


class Body(Protocol):
    """One device's part of an MoE layer: x [Tl, D] its own tokens, valid [T] of all tokens of the group.

    Tl is T where every device of the group holds all tokens, else T / peers.
    """

    def __call__(self, x: Float[Array, "Tl D"], valid: Bool[Array, " T"], group: ExpertGroup) -> Dispatched: ...


def dispatch_body(name: DispatchName) -> Body:
    """The function of a dispatch."""
    module, function = DISPATCHES[name].body.split(":")
    return getattr(import_module(module), function)
