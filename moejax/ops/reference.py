"""The specification of every operation, in plain jax.numpy: the same results but for the order of sums.

Implementations may take weights in another layout and caches as bits; what they compute is this.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from moejax.families.config import AttentionPolicy, RouterPolicy
from moejax.ops.places import local, place
from moejax.ops.routing import Routing

PRECISE = lax.Precision.HIGHEST  # float32 products in float32, not TF32


def zeros(*results: jax.ShapeDtypeStruct) -> tuple[Array, ...]:
    """Arrays of zeros."""
    return tuple(jnp.zeros(one.shape, one.dtype) for one in results)


def project(
    x: Float[Array, "*rows I"], *weights: Float[Array, "O I"], dtype: jax.typing.DTypeLike = jnp.float32
) -> tuple[Float[Array, "*rows O"], ...]:
    """x w^T for each weight, in float32 and then in `dtype`."""
    last = (((x.ndim - 1,), (1,)), ((), ()))
    return tuple(
        lax.dot_general(x, w, last, precision=PRECISE, preferred_element_type=jnp.float32).astype(dtype)
        for w in weights
    )


def norm(x: Float[Array, "*rows D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*rows D"]:
    """x / rms(x) * scale, in float32 and then in the dtype of x (Zhang and Sennrich, arXiv:1910.07467)."""
    x32 = x.astype(jnp.float32)
    inverse_rms = lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * inverse_rms * scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def add_norm(
    x: Float[Array, "*rows D"],
    added: Float[Array, "*rows D"] | None,
    scale: Float[Array, " D"],
    eps: float,
    *,
    norm: Callable[..., Array] = norm,
) -> tuple[Float[Array, "*rows D"], Float[Array, "*rows D"]]:
    """x + added, in their dtype, and its norm; None adds nothing.  norm: how that is computed."""
    total = x if added is None else x + added
    return total, norm(total, scale, eps=eps)


def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T H/2"], sin: Float[Array, "B T H/2"]
) -> Float[Array, "B T N H"]:
    """Rotates the pairs (i, i + H/2) of every head (Su et al., arXiv:2104.09864); float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    starts: Int[Array, " B"],
    policy: AttentionPolicy,
    sinks: Float[Array, "K G"] | None = None,
) -> Float[Array, "B K G T H"]:
    """Softmax attention of T queries per sequence, at positions `starts` and on; float32.

    A query sees the positions up to its own, the last `policy.window` of them. What is in the others does not matter.
    sinks: a score of each head that takes part in every softmax and has no value (gpt-oss, arXiv:2508.10925).
    """
    scores = jnp.einsum("bkgth,bksh->bkgts", *(a.astype(jnp.float32) for a in (q, k)), precision=PRECISE)
    positions = starts[:, None] + jnp.arange(q.shape[3])[None, :]
    distance = positions[:, :, None] - jnp.arange(k.shape[2])[None, None, :]  # B T S
    seen = (distance >= 0) & (distance < (policy.window or k.shape[2] + q.shape[3]))
    scores = jnp.where(seen[:, None, None], capped(scores * policy.scale_of(q.shape[-1]), policy), -jnp.inf)
    if sinks is not None:
        column = jnp.broadcast_to(sinks.astype(jnp.float32)[None, :, :, None, None], (*scores.shape[:-1], 1))
        scores = jnp.concatenate([scores, column], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., : k.shape[2]]
    values = jnp.where(seen.any(axis=1)[:, None, :, None], v.astype(jnp.float32), 0.0)  # 0 times NaN is NaN
    return jnp.einsum("bkgts,bksh->bkgth", weights, values, precision=PRECISE)


def capped(scores: Float[Array, "*scores"], policy: AttentionPolicy) -> Float[Array, "*scores"]:
    """Scores under the policy's soft cap."""
    return scores if policy.soft_cap is None else policy.soft_cap * jnp.tanh(scores / policy.soft_cap)


def route(logits: Float[Array, "T E"], valid: Bool[Array, " T"], policy: RouterPolicy) -> Routing:
    """Top-k routing by softmax over all experts (Jiang et al., arXiv:2401.04088, section 2.1); all in float32.

    A token whose softmax is NaN (its logits hold NaN or infinity) gets NaN weights and experts 0, 1, ...
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    weights, experts = lax.top_k(probabilities, policy.experts_per_token)
    if policy.renormalise:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    valid = valid[:, None]
    return Routing(jnp.where(valid, experts, logits.shape[1]), jnp.where(valid, weights * policy.scale, 0.0))


def route_here(
    logits: Float[Array, "T E"],
    valid: Bool[Array, " T"],
    policy: RouterPolicy,
    table: Int[Array, "3 P"],
    first: Int[Array, ""] | None,
    places: int,
    *,
    route: Callable[..., Routing] = route,
) -> tuple[Int[Array, "T A"], Routing]:
    """The experts that tokens chose, and their routing to the `places` places from `first` on (None: all places).

    table: what each place holds (`PhysicalExperts.tables`).  route: how they choose.
    """
    routing = route(logits, valid, policy)
    placed = place(routing, table, logits.shape[1])
    return routing.experts, placed if first is None else local(placed, first, places)


def expert_ffn(
    gate: Float[Array, "E F D"],
    up: Float[Array, "E F D"],
    down: Float[Array, "E D F"],
    x: Float[Array, "T D"],
    experts: Int[Array, "T A"],
    weights: Float[Array, "T A"],
) -> Float[Array, "T D"]:
    """Weighted sum of down(silu(gate x) * up x) over each token's A experts (SwiGLU, Shazeer, arXiv:2002.05202).

    The result is float32, the hidden values are rounded to the dtype of x. Expert E is none. Weights of experts that
    nobody chose are not read, and tokens do not mix: NaN in one reaches no other.
    """
    total = jnp.zeros(x.shape, jnp.float32)
    for e in range(gate.shape[0]):
        gated, upped = project(x, gate[e], up[e])
        (result,) = project((jax.nn.silu(gated) * upped).astype(x.dtype), down[e])
        chosen = experts == e
        weight = jnp.sum(jnp.where(chosen, weights, 0.0), axis=1, keepdims=True)
        total += jnp.where(chosen.any(axis=1)[:, None], weight * result, 0.0)
    return total
