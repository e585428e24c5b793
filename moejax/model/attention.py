"""Grouped-query attention over a cache (Ainslie et al., arXiv:2305.13245), with an optional sliding window."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float, Int

from moejax.families.config import ModelConfig
from moejax.model.cache import LayerCache
from moejax.model.params import fan_in_normal, param
from moejax.model.rotary import Rotation
from moejax.moe.parallel import Parallel
from moejax.ops.operations import XLA, Operations
from moejax.weights.declarations import CACHE_AXES, attention_weights


class Attention(nnx.Module):
    """Projections q [N H, D], k and v [K H, D], o [D, N H]; G = N / K query heads share a key/value head.

    On a mesh each device has Nl query heads and the Kl key/value heads that it holds of the cache. What its heads add
    to the output is cast to the activations' dtype before it is summed over devices, which the compiler alone would do
    after the sum, at twice the bytes.
    """

    def __init__(
        self,
        config: ModelConfig,
        parallel: Parallel,
        operations: Operations = XLA,
        *,
        dtype: jax.typing.DTypeLike,
    ) -> None:
        weights, d, q = attention_weights(config), config.embed_dim, config.num_heads * config.head_dim
        self.parallel, self.operations, self.window = parallel, operations, config.sliding_window
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
        q, k, v = (y.reshape(b, t, -1, self.head_dim) for y in self.operations.project(x, w_q, w_k, w_v))
        q, cache = self.operations.rotate_into_cache(q, k, v, angles, starts, cache)  # q: B N T H
        keys, values = (self._used(cached, q.shape[1]) for cached in (cache.keys(), cache.values()))
        q = q.reshape(b, keys.shape[1], -1, t, self.head_dim)  # B K G T H
        y = self.operations.attend(q, keys, values, starts, self.window)
        y = y.transpose(0, 3, 1, 2, 4).reshape(b, t, -1).astype(x.dtype)
        (y,) = self.operations.project(y, w_o)
        return lax.psum(y.astype(x.dtype), self.parallel.axes("q_heads")), cache

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
