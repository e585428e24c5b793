"""Grouped-query attention over a cache (Ainslie et al., arXiv:2305.13245), with an optional sliding window."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float, Int

from moejax.families.config import ModelConfig
from moejax.families.kv_cache import CACHE_AXES
from moejax.model.cache import LayerCache
from moejax.model.rotary import Rotation
from moejax.moe.parallel import Parallel
from moejax.ops.table import Ops
from moejax.weights.params import optional_param, param, value
from moejax.weights.weight import Weight


class Attention(nnx.Module):
    """Projections q [N H, D], k and v [K H, D], o [D, N H]; G = N / K query heads share a key/value head.

    A family may declare biases of q, k and v, and norms of each head's queries and keys [H] before they are rotated.

    On a mesh each device has Nl query heads and the Kl key/value heads that it holds of the cache. What its heads add
    to the output is cast to the activations' dtype before it is summed over devices, which the compiler alone would do
    after the sum, at twice the bytes.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Weight],
        parallel: Parallel,
        ops: Ops,
        *,
        dtype: jax.typing.DTypeLike,
    ) -> None:
        self.parallel, self.ops, self.policy, self.eps = parallel, ops, config.attention, config.norm_eps
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        rules = parallel.rules
        self.q, self.k, self.v, self.o = (
            param(weights[name], rules, dtype=dtype, storage=ops.storage) for name in ("q", "k", "v", "o")
        )
        self.q_bias, self.k_bias, self.v_bias, self.q_norm, self.k_norm = (
            optional_param(weights, name, rules, dtype=dtype)
            for name in ("q_bias", "k_bias", "v_bias", "q_norm", "k_norm")
        )

    def __call__(
        self, x: Float[Array, "B T D"], angles: Rotation, starts: Int[Array, " B"], cache: LayerCache
    ) -> tuple[Float[Array, "B T D"], LayerCache]:
        """Attends from T new tokens per sequence, which stand at positions `starts` and on, to all before them."""
        parallel = self.parallel
        rows, cached = parallel.spec("batch"), parallel.spec(*CACHE_AXES)
        weights = AttentionWeights(
            *(value(getattr(self, name)) for name in AttentionWeights._fields)  # None where there is none
        )
        in_specs = (rows, rows, rows, cached, parallel.specs(weights))
        return parallel.map(self._on_device, in_specs, (rows, cached))(x, angles, starts, cache, weights)

    def _on_device(
        self,
        x: Float[Array, "Bl T D"],
        angles: Rotation,
        starts: Int[Array, " Bl"],
        cache: LayerCache,
        weights: "AttentionWeights",
    ) -> tuple[Float[Array, "Bl T D"], LayerCache]:
        """Sequences are split as the batch, heads as theirs are; the output is whole on all devices of a sequence."""
        w, (b, t, _) = weights, x.shape
        projected = self.ops.project(x, w.q, w.k, w.v)
        q, k, v = (
            (y if bias is None else y + bias.numbers().astype(y.dtype)[None, None, :]).reshape(b, t, -1, self.head_dim)
            for y, bias in zip(projected, (w.q_bias, w.k_bias, w.v_bias), strict=True)
        )
        q, k = (
            y if scale is None else self.ops.norm(y.astype(x.dtype), scale.numbers(), eps=self.eps).astype(y.dtype)
            for y, scale in ((q, w.q_norm), (k, w.k_norm))
        )
        q, new_k, new_v = self.ops.rotate(q, k, v, *angles, starts, cache.k, cache.v, cache.dtype)  # q: B N T H
        cache = dataclasses.replace(cache, k=new_k, v=new_v)
        keys, values = (self._used(cached, q.shape[1]) for cached in (cache.keys(), cache.values()))
        q = q.reshape(b, keys.shape[1], -1, t, self.head_dim)  # B K G T H
        y = self.ops.attend(q, keys, values, starts, self.policy)
        y = y.transpose(0, 3, 1, 2, 4).reshape(b, t, -1).astype(x.dtype)

        def output(heads: Float[Array, "rows NH"]) -> Float[Array, "rows D"]:
            (projected,) = self.ops.project(heads, w.o, dtype=x.dtype)
            return lax.psum(projected, self.parallel.axes("q_heads"))

        y = self.parallel.in_micro_batches(output, (y.reshape(b * t, -1), 0))
        return y.reshape(x.shape), cache

    def _used(self, held: Float[Array, "Bl Kl S H"], queries: int) -> Float[Array, "Bl Ku S H"]:
        """The key/value heads that a device's `queries` query heads use, of those that it holds, each for as many.

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


class AttentionWeights(NamedTuple):
    """The values of an attention layer's weights, as `Attention` has them."""

    q: Any
    k: Any
    v: Any
    o: Any
    q_bias: Any
    k_bias: Any
    v_bias: Any
    q_norm: Any
    k_norm: Any
