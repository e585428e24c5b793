"""Rotary position embeddings on the way into the cache: `xla.rotate.rotate_into_cache` in one launch, in place."""

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jaxtyping import Float, Int, Shaped

from moejax.ops.triton.blocks import rotate_block
from moejax.ops.triton.launch import Out, both, launch, load, store, within


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
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "B N T H"], Shaped[Array, "B K S H"], Shaped[Array, "B K S H"]]:
    """As there. Programs: blocks of tokens x heads (queries, then keys, then values) x sequences."""
    (b, t, n, h), kv, slots = q.shape, k.shape[2], k_cache.shape[2]
    block, half = rotate_block(t, h), h // 2

    def rotate(q_ref, k_ref, v_ref, cos_ref, sin_ref, starts_ref, _k, _v, q_out, k_out, v_out):
        tokens = pl.program_id(0) * block.tokens + jnp.arange(block.tokens)
        head, sequence = pl.program_id(1), pl.program_id(2)
        columns = jnp.arange(block.half)
        mask = both(within(tokens, t, block.tokens), within(columns, half, block.half), (block.tokens, block.half))
        # A start too near to the end is moved, as `lax.dynamic_update_slice` does.
        positions = jnp.minimum(starts_ref[sequence], slots - t) + tokens

        def both_halves(ref, of_head):
            index = (sequence, tokens[:, None], of_head)
            return tuple(load(ref, (*index, first + columns[None, :]), mask).astype(jnp.float32) for first in (0, half))

        def write(ref, of_head, places, halves):
            for first, numbers in zip((0, half), halves, strict=True):
                stored = numbers.astype(dtype)
                stored = stored if ref.dtype == dtype else lax.bitcast_convert_type(stored, ref.dtype)
                store(ref, (sequence, of_head, places[:, None], first + columns[None, :]), stored, mask)

        def rotated(ref, of_head):
            first, second = both_halves(ref, of_head)
            index = (sequence, tokens[:, None], columns[None, :])
            cosine, sine = load(cos_ref, index, mask), load(sin_ref, index, mask)
            return first * cosine - second * sine, second * cosine + first * sine

        @pl.when(head < n)
        def _():
            write(q_out, head, tokens, rotated(q_ref, head))

        @pl.when((head >= n) & (head < n + kv))
        def _():
            write(k_out, head - n, positions, rotated(k_ref, head - n))

        @pl.when(head >= n + kv)
        def _():
            write(v_out, head - n - kv, positions, both_halves(v_ref, head - n - kv))

    rotated_q, keys, values = launch(
        rotate,
        "rotate_into_cache",
        (pl.cdiv(t, block.tokens), n + 2 * kv, b),
        (Out((b, n, t, h), dtype), Out(k_cache.shape, k_cache.dtype), Out(v_cache.shape, v_cache.dtype)),
        (q, k, v, cos, sin, starts.astype(jnp.int32), k_cache, v_cache),
        in_place={6: 1, 7: 2},
        warps=block.warps,
        interpret=interpret,
    )
    return rotated_q, keys, values
