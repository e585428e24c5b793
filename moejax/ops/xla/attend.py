"""Softmax attention of new queries over cached keys and values, with an optional sliding window, in XLA.

One token per row attends to the cache directly. Several tokens attend block of queries by block of keys with a
running softmax (Dao et al., arXiv:2205.14135), so temporary memory does not grow with the square of the prompt, and
blocks that the causal mask or the window hides are never visited.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from moejax.families.config import AttentionPolicy
from moejax.ops import reference
from moejax.runtime.platform import smallest_product
from moejax.weights.storage import precision_of

QUERY_BLOCK = 128
KEY_BLOCK = 128
_MASKED = -1e30  # finite: a row that sees nothing yet must not become NaN


def attend(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    starts: Int[Array, " B"],
    policy: AttentionPolicy,
    sinks: Float[Array, "K G"] | None = None,
) -> Float[Array, "B K G T H"]:
    """Attention of T queries per row, at positions `starts` and on; float32 result."""
    return (attend_one if q.shape[3] == 1 else attend_blocks)(q, k, v, starts, policy, sinks)


def attend_one(
    q: Float[Array, "B K G 1 H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    positions: Int[Array, " B"],
    policy: AttentionPolicy,
    sinks: Float[Array, "K G"] | None = None,
) -> Float[Array, "B K G 1 H"]:
    """Attention of one query per row at `positions`; float32 result."""
    group = q.shape[2]
    padding = max(0, smallest_product(k.dtype) - group)  # one query head per key/value head is a product of one row
    q_BKGH = jnp.pad(q[:, :, :, 0], ((0, 0), (0, 0), (0, padding), (0, 0)))
    scores = reference.capped(_product("bkgh,bksh->bkgs", q_BKGH, k) * policy.scale_of(q.shape[-1]), policy)
    visible = _visible(positions[:, None], jnp.arange(k.shape[2])[None, :], policy.window)  # B 1 S
    scores = jnp.where(visible[:, None], scores, _MASKED)
    if sinks is not None:
        column = jnp.pad(sinks.astype(jnp.float32), ((0, 0), (0, padding)))[None, :, :, None]
        scores = jnp.concatenate([scores, jnp.broadcast_to(column, (*scores.shape[:-1], 1))], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., : k.shape[2]].astype(v.dtype)
    y = _product("bkgs,bksh->bkgh", weights, v)
    return y[:, :, :group, None]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend_blocks(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    starts: Int[Array, " B"],
    policy: AttentionPolicy,
    sinks: Float[Array, "K G"] | None = None,
) -> Float[Array, "B K G T H"]:
    """Attention of T queries per row, at positions `starts` and on; float32 result.

    T and S must be multiples of their blocks, or smaller than one (buckets are). Its gradient is the reference's: a
    loop over as many blocks as are seen has none in reverse. It takes memory for all scores.
    """
    b, kv, g, t, h = q.shape
    query_block, key_block = math.gcd(t, QUERY_BLOCK), math.gcd(k.shape[2], KEY_BLOCK)
    scale, window = policy.scale_of(h), policy.window

    def one_query_block(block: Array) -> Float[Array, "B K G Q H"]:
        q_block = lax.dynamic_slice_in_dim(q, block * query_block, query_block, axis=3)
        positions = starts[:, None] + block * query_block + jnp.arange(query_block)[None, :]  # B Q

        def add_key_block(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            total, denominator, peak = carry
            k_block = lax.dynamic_slice_in_dim(k, index * key_block, key_block, axis=2)
            v_block = lax.dynamic_slice_in_dim(v, index * key_block, key_block, axis=2)
            scores = reference.capped(_product("bkgqh,bksh->bkgqs", q_block, k_block) * scale, policy)
            slots = index * key_block + jnp.arange(key_block)
            scores = jnp.where(_visible(positions, slots[None, :], window)[:, None, None], scores, _MASKED)
            new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1, keepdims=True))
            weights, shrink = jnp.exp(scores - new_peak), jnp.exp(peak - new_peak)
            part = _product("bkgqs,bksh->bkgqh", weights.astype(v.dtype), v_block)
            return total * shrink + part, denominator * shrink + weights.sum(-1, keepdims=True), new_peak

        first = jnp.zeros((), jnp.int32)
        if window is not None:
            first = jnp.maximum(positions.min() - window + 1, 0) // key_block
        last = jnp.minimum(positions.max(), k.shape[2] - 1) // key_block
        shape = (b, kv, g, query_block)
        empty = (jnp.zeros((*shape, h)), jnp.zeros((*shape, 1)), jnp.full((*shape, 1), _MASKED))
        total, denominator, peak = lax.fori_loop(first, last + 1, add_key_block, empty)
        if sinks is not None:  # against any peak: where a sink is far above it, its weight is infinite and the result 0
            denominator += jnp.exp(sinks.astype(jnp.float32)[None, :, :, None, None] - peak)
        return total / denominator

    if t == query_block:
        return one_query_block(jnp.zeros((), jnp.int32))
    blocks = lax.map(one_query_block, jnp.arange(t // query_block))  # blocks B K G Q H
    return jnp.moveaxis(blocks, 0, 3).reshape(q.shape)


def _forward(
    q: Array, k: Array, v: Array, starts: Array, policy: AttentionPolicy, sinks: Array | None
) -> tuple[Array, tuple[Array | None, ...]]:
    return attend_blocks(q, k, v, starts, policy, sinks), (q, k, v, sinks, starts)


def _backward(policy: AttentionPolicy, saved: tuple[Any, ...], gradient: Array) -> tuple[Array | None, ...]:
    *inputs, starts = saved
    _, of_inputs = jax.vjp(lambda q, k, v, sinks: reference.attend(q, k, v, starts, policy, sinks), *inputs)
    *of_operands, of_sinks = of_inputs(gradient)
    return *of_operands, None, of_sinks


attend_blocks.defvjp(_forward, _backward)


def _product(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, precision=precision_of(b.dtype), preferred_element_type=jnp.float32)


def _visible(queries: Int[Array, "B Q"], slots: Int[Array, "1 S"], window: int | None) -> Array:
    """Which slots each query may see, bool [B, Q, S] (queries [B, Q] or, for one per row, [B, 1])."""
    distance = queries[:, :, None] - slots[:, None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)
