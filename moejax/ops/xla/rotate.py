"""Rotary position embeddings on the way into the cache, in XLA."""

import jax
from jax import Array, lax
from jaxtyping import Float, Int, Shaped

from moejax.ops.reference import rotate
from moejax.runtime.bits import to_bits


def rotate_into_cache(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    cos: Float[Array, "B T H/2"],
    sin: Float[Array, "B T H/2"],
    starts: Int[Array, " B"],
    k_cache: Shaped[Array, "B K S H"],
    v_cache: Shaped[Array, "B K S H"],
    dtype: str,
) -> tuple[Float[Array, "B N T H"], Shaped[Array, "B K S H"], Shaped[Array, "B K S H"]]:
    """The rotated queries, in `dtype`, and the caches with rotated keys and the values from positions `starts` on.

    Caches of 16 bits are kept as bits.
    """
    keys = write_positions(k_cache, to_bits(rotate(k, cos, sin).swapaxes(1, 2), dtype), starts)
    values = write_positions(v_cache, to_bits(v.swapaxes(1, 2), dtype), starts)
    return rotate(q, cos, sin).astype(dtype).swapaxes(1, 2), keys, values


def write_positions(
    cache: Shaped[Array, "B K S H"], new: Shaped[Array, "B K T H"], starts: Int[Array, " B"]
) -> Shaped[Array, "B K S H"]:
    """The cache with T new entries in the positions from `starts` on, one start per sequence."""
    return jax.vmap(lambda row, part, start: lax.dynamic_update_slice(row, part, (0, start, 0)))(cache, new, starts)
