"""Products with weight matrices, in XLA."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def project(
    x: Float[Array, "*rows I"], *weights: Any, dtype: jax.typing.DTypeLike = jnp.float32
) -> tuple[Float[Array, "*rows O"], ...]:
    """`reference.project`, of values in whatever storage."""
    return tuple(w.product(x).astype(dtype) for w in weights)
