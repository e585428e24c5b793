"""Where tokens go: the result of every router, and of every router's implementation."""

from typing import NamedTuple

from jax import Array
from jaxtyping import Float, Int


class Routing(NamedTuple):
    """Where each token goes. A token that is not routed has id E in every place, and weight 0.

    experts: int32 [T, A], best first, ties to the lower id.  weights: float32 [T, A].
    ranks, counts: each row's rank among the rows of its expert, int32 [T, A] (0 where it has none), and rows per
    expert, int32 [E], where they are known; whoever moves tokens or renumbers experts makes a new Routing without them.
    """

    experts: Int[Array, "T A"]
    weights: Float[Array, "T A"]
    ranks: Int[Array, "T A"] | None = None
    counts: Int[Array, " E"] | None = None
