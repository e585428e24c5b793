"""The kernels' specification, in plain jax.numpy: the same signatures, the same results but for the order of sums."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

# gate [F, D], up [F, D] and down [D, F] of one expert.
ExpertMatrices = tuple[Float[Array, "F D"], Float[Array, "F D"], Float[Array, "D F"]]


def linear(x: Float[Array, "T D"], *weights: Float[Array, "O D"]) -> tuple[Float[Array, "T O"], ...]:
    """x w^T for each weight; float32."""
    return tuple(
        lax.dot_general(x, w, (((1,), (1,)), ((), ())), precision="highest", preferred_element_type=jnp.float32)
        for w in weights
    )


def expert_ffn(
    experts: Sequence[ExpertMatrices], x: Float[Array, "T D"], ids: Int[Array, "T A"], weights: Float[Array, "T A"]
) -> Float[Array, "T D"]:
    """Weighted sum of down(silu(gate x) * up x) over each token's A experts; float32. Id E is none.

    The hidden values are rounded to the dtype of x. Tokens do not mix: NaN in one reaches no other.
    """
    total = jnp.zeros(x.shape, jnp.float32)
    for index, (gate, up, down) in enumerate(experts):
        gated, upped = linear(x, gate, up)
        (result,) = linear((jax.nn.silu(gated) * upped).astype(x.dtype), down)
        chosen = (ids == index)[..., None]
        total += jnp.sum(jnp.where(chosen, weights[..., None] * result[:, None], 0.0), axis=1)
    return total


def attend(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    starts: Int[Array, " B"],
    window: int | None,
) -> Float[Array, "B K G T H"]:
    """Softmax attention of T queries per row, at positions `starts` and on; float32.

    A query sees the slots up to its position, the last `window` of them. What is in the others does not matter.
    """
    scores = jnp.einsum("bkgth,bksh->bkgts", *(a.astype(jnp.float32) for a in (q, k)), precision="highest")
    positions = starts[:, None] + jnp.arange(q.shape[3])[None, :]
    distance = positions[:, :, None] - jnp.arange(k.shape[2])[None, None, :]  # B T S
    seen = (distance >= 0) & (distance < (window or k.shape[2] + q.shape[3]))
    scores = jnp.where(seen[:, None, None], scores / math.sqrt(q.shape[-1]), -jnp.inf)
    values = jnp.where(seen.any(axis=1)[:, None, :, None], v.astype(jnp.float32), 0.0)  # 0 times NaN is NaN
    return jnp.einsum("bkgts,bksh->bkgth", jax.nn.softmax(scores, axis=-1), values, precision="highest")
