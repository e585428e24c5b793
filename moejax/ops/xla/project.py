"""Products with weight matrices, in XLA."""

from typing import Any

from jax import Array
from jaxtyping import Float


def project(x: Float[Array, "*rows I"], *weights: Any) -> tuple[Float[Array, "*rows O"], ...]:
    """`reference.project`, of values in whatever storage."""
    return tuple(w.product(x) for w in weights)
