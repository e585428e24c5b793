"""Grouped-query attention over a cache (Ainslie et al., arXiv:2305.13245), with an optional sliding window.

One token per row attends to the cache directly. Several tokens attend block of queries by block of keys with a
running softmax (Dao et al., arXiv:2205.14135), so temporary memory does not grow with the square of the prompt, and
blocks that the causal mask or the window hides are never visited.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float, Int

from moejax.cache import LayerCache
from moejax.config import ModelConfig
from moejax.declarations import CACHE_AXES, attention_weights
from moejax.layers import Rotation, linear, rotate
from moejax.parallel import Parallel
from moejax.params import fan_in_normal, param
from moejax.platform import smallest_product

QUERY_BLOCK = 128
KEY_BLOCK = 128
_MASKED = -1e30  # finite: a row that sees nothing yet must not become NaN


class Attention(nnx.Module):
    """Projections q [N H, D], k and v [K H, D], o [D, N H]; G = N / K query heads share a key/value head.

    On a mesh each device has Nl query heads and the Kl key/value heads that it holds of the cache. What its heads add
    to the output is cast to the activations' dtype before it is summed over devices, which the compiler alone would do
    after the sum, at twice the bytes.
    """

    def __init__(self, config: ModelConfig, parallel: Parallel, *, dtype: jax.typing.DTypeLike) -> None:
        weights, d, q = attention_weights(config), config.embed_dim, config.num_heads * config.head_dim
        self.parallel, self.window = parallel, config.sliding_window
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.q = param(*weights["q"], init=fan_in_normal(d), dtype=dtype)
        self.k = param(*weights["k"], init=fan_in_normal(d), dtype=dtype)
        self.v = param(*weights["v"], init=fan_in_normal(d), dtype=dtype)
        self.o = param(*weights["o"], init=fan_in_normal(q), dtype=dtype)

    def __call__(
        self, x: Float[Array, "B T D"], angles: Rotation, starts: Int[Array, " B"], cache: LayerCache
    ) -> tuple[Float[Array, "B T D"], LayerCache]:
        """Attends from T new tokens per row, which stand at positions `starts` and on, to all before them."""
        parallel = self.parallel
        rows, cached = parallel.spec("batch"), parallel.spec(*CACHE_AXES)
        queries, keys = parallel.spec("q_heads"), parallel.spec("kv_heads")
        in_specs = (rows, rows, rows, cached, queries, keys, keys, parallel.spec("embed", "q_heads"))
        attend = parallel.map(self._on_device, in_specs, (rows, cached))
        return attend(x, angles, starts, cache, self.q[...], self.k[...], self.v[...], self.o[...])

    def _on_device(
        self,
        x: Float[Array, "Bl T D"],
        angles: Rotation,
        starts: Int[Array, " Bl"],
        cache: LayerCache,
        w_q: Float[Array, "NlH D"],
        w_k: Float[Array, "KlH D"],
        w_v: Float[Array, "KlH D"],
        w_o: Float[Array, "D NlH"],
    ) -> tuple[Float[Array, "Bl T D"], LayerCache]:
        """Rows are split as the batch, heads as theirs are; the output is whole on all devices of a row."""
        b, t, _ = x.shape
        q = linear(x, w_q).reshape(b, t, -1, self.head_dim)
        k = linear(x, w_k).reshape(b, t, -1, self.head_dim)
        v = linear(x, w_v).reshape(b, t, -1, self.head_dim)
        q, k = rotate(q, angles).astype(x.dtype), rotate(k, angles)
        cache = cache.write(k.swapaxes(1, 2), v.swapaxes(1, 2), starts)
        keys, values = (self._used(cached, q.shape[2]) for cached in (cache.keys(), cache.values()))
        q = q.reshape(b, t, keys.shape[1], -1, self.head_dim).transpose(0, 2, 3, 1, 4)  # B K G T H
        attend = attend_one if t == 1 else attend_blocks
        y = attend(q, keys, values, starts, self.window)
        y = y.transpose(0, 3, 1, 2, 4).reshape(b, t, -1).astype(x.dtype)
        return lax.psum(linear(y, w_o).astype(x.dtype), self.parallel.axes("q_heads")), cache

    def _used(self, held: Float[Array, "Bl Kl S H"], queries: int) -> Float[Array, "Bl Ku S H"]:
        """Of the key/value heads that a device holds, those that its `queries` query heads use, each for as many.

        All of them wherever both kinds of heads are split alike, or key/value heads as far as they divide.
        """
        held_heads, group = held.shape[1], self.num_heads // self.num_kv_heads
        if queries == held_heads * group or held_heads == 1:
            return held
        axes = self.parallel.axes
        first_query = lax.axis_index(axes("q_heads")) * queries
        first_held = lax.axis_index(axes("kv_heads")) * held_heads
        if queries % group == 0 or group % queries == 0:  # whole groups, or a part of one
            return lax.dynamic_slice_in_dim(held, first_query // group - first_held, max(1, queries // group), axis=1)
        each = (first_query + jnp.arange(queries)) // group - first_held  # groups cut by the split: one entry per query
        return held.at[:, each].get(mode="clip")


def attend_one(
    q: Float[Array, "B K G 1 H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    positions: Int[Array, " B"],
    window: int | None,
) -> Float[Array, "B K G 1 H"]:
    """Attention of one query per row at `positions`; float32 result."""
    group = q.shape[2]
    padding = max(0, smallest_product(k.dtype) - group)  # one query head per key/value head is a product of one row
    q_BKGH = jnp.pad(q[:, :, :, 0], ((0, 0), (0, 0), (0, padding), (0, 0)))
    scores = jnp.einsum("bkgh,bksh->bkgs", q_BKGH, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    visible = _visible(positions[:, None], jnp.arange(k.shape[2])[None, :], window)  # B 1 S
    weights = jax.nn.softmax(jnp.where(visible[:, None], scores, _MASKED), axis=-1).astype(v.dtype)
    y = jnp.einsum("bkgs,bksh->bkgh", weights, v, preferred_element_type=jnp.float32)
    return y[:, :, :group, None]


def attend_blocks(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    starts: Int[Array, " B"],
    window: int | None,
) -> Float[Array, "B K G T H"]:
    """Attention of T queries per row, at positions `starts` and on; float32 result.

    T and S must be multiples of their blocks, or smaller than one (buckets are).
    """
    b, kv, g, t, h = q.shape
    query_block, key_block = math.gcd(t, QUERY_BLOCK), math.gcd(k.shape[2], KEY_BLOCK)
    scale = 1.0 / math.sqrt(h)

    def one_query_block(block: Array) -> Float[Array, "B K G Q H"]:
        q_block = lax.dynamic_slice_in_dim(q, block * query_block, query_block, axis=3)
        positions = starts[:, None] + block * query_block + jnp.arange(query_block)[None, :]  # B Q

        def add_key_block(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            total, denominator, peak = carry
            k_block = lax.dynamic_slice_in_dim(k, index * key_block, key_block, axis=2)
            v_block = lax.dynamic_slice_in_dim(v, index * key_block, key_block, axis=2)
            scores = jnp.einsum("bkgqh,bksh->bkgqs", q_block, k_block, preferred_element_type=jnp.float32) * scale
            slots = index * key_block + jnp.arange(key_block)
            scores = jnp.where(_visible(positions, slots[None, :], window)[:, None, None], scores, _MASKED)
            new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1, keepdims=True))
            weights, shrink = jnp.exp(scores - new_peak), jnp.exp(peak - new_peak)
            part = jnp.einsum("bkgqs,bksh->bkgqh", weights.astype(v.dtype), v_block, preferred_element_type=jnp.float32)
            return total * shrink + part, denominator * shrink + weights.sum(-1, keepdims=True), new_peak

        first = jnp.zeros((), jnp.int32)
        if window is not None:
            first = jnp.maximum(positions.min() - window + 1, 0) // key_block
        last = jnp.minimum(positions.max(), k.shape[2] - 1) // key_block
        shape = (b, kv, g, query_block)
        empty = (jnp.zeros((*shape, h)), jnp.zeros((*shape, 1)), jnp.full((*shape, 1), _MASKED))
        total, denominator, _ = lax.fori_loop(first, last + 1, add_key_block, empty)
        return total / denominator

    if t == query_block:
        return one_query_block(jnp.zeros((), jnp.int32))
    blocks = lax.map(one_query_block, jnp.arange(t // query_block))  # blocks B K G Q H
    return jnp.moveaxis(blocks, 0, 3).reshape(q.shape)


def _visible(queries: Int[Array, "B Q"], slots: Int[Array, "1 S"], window: int | None) -> Array:
    """Which slots each query may see, bool [B, Q, S] (queries [B, Q] or, for one per row, [B, 1])."""
    distance = queries[:, :, None] - slots[:, None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)
