"""Rotary position embeddings (Su et al., arXiv:2104.09864), on the way into the cache."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from moejax.model.cache import LayerCache


class Rotation(NamedTuple):
    """Cosine and sine of the rotary angles of every position, float32 [B, T, H / 2]."""

    cos: Float[Array, "B T H/2"]
    sin: Float[Array, "B T H/2"]


def rotation(positions: Int[Array, "B T"], head_dim: int, theta: float) -> Rotation:
    """Rotary angles (Su et al., arXiv:2104.09864): position times theta^(-2i/H)."""
    frequencies = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None, :]
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "B T N H"], angles: Rotation) -> Float[Array, "B T N H"]:
    """Rotates the pairs (i, i + H/2) of every head; the result is float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = angles.cos[:, :, None, :], angles.sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rotate_into_cache(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    angles: Rotation,
    starts: Int[Array, " B"],
    cache: LayerCache,
) -> tuple[Float[Array, "B N T H"], LayerCache]:
    """The rotated queries, in the cache's dtype, and the cache with rotated keys and the values from `starts` on."""
    cache = cache.write(rotate(k, angles).swapaxes(1, 2), v.swapaxes(1, 2), starts)
    return rotate(q, angles).astype(cache.dtype).swapaxes(1, 2), cache
