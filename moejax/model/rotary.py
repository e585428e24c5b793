"""Angles of rotary position embeddings (Su et al., arXiv:2104.09864)."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


class Rotation(NamedTuple):
    """Cosine and sine of the rotary angles of every position, float32 [B, T, H / 2]."""

    cos: Float[Array, "B T H/2"]
    sin: Float[Array, "B T H/2"]


def rotation(positions: Int[Array, "B T"], head_dim: int, theta: float) -> Rotation:
    """Rotary angles: position times theta^(-2i/H)."""
    frequencies = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None, :]
    return Rotation(jnp.cos(angles), jnp.sin(angles))
