"""Dispatch `gather`: each device along `expert` has tokens of its own, and shows them to the others.

All-gather over expert, compute, reduce-scatter back, and what remains is summed over tensor: half of what `replicated`
moves where tensor = 1, with attention on a device's own tokens only.
"""

from jax import Array, lax
from jaxtyping import Bool, Float

from moejax.moe.dispatch import Dispatched, ExpertGroup


def gather(x: Float[Array, "Tl D"], valid: Bool[Array, " T"], group: ExpertGroup) -> Dispatched:
    """On entry and on exit tokens are split over (data, expert); T = Tl x peers. Partial over tensor."""
    tokens = lax.all_gather(x, group.expert, axis=0, tiled=True)
    routing = group.route(tokens, valid)
    local = group.local(group.place(routing))
    part = group.compute(tokens, local).astype(x.dtype)
    y = lax.psum_scatter(part, group.expert, scatter_dimension=0, tiled=True)
    return Dispatched(y, group.mine(routing.experts), group.count(local))
