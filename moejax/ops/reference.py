"""The kernels' specification, in plain jax.numpy. Every other implementation has these signatures and these results.

Dimensions as everywhere, and P places of expert-sorted rows, S partial sums of a row, X the width of a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

PRECISE = lax.Precision.HIGHEST  # float32 products in float32, not TF32


class Routes(NamedTuple):
    """Where each token goes. A token that is not valid has id E in every place, weight 0 and rank 0.

    experts: int32 [T, A], best first, ties to the lower id.  weights: float32 [T, A], summing to 1 per token.
    ranks: int32 [T, A], how many rows before this one chose the same expert.  counts: int32 [E], rows per expert.
    """

    experts: Int[Array, "T A"]
    weights: Float[Array, "T A"]
    ranks: Int[Array, "T A"]
    counts: Int[Array, " E"]


def route(logits: Float[Array, "T E"], valid: Bool[Array, " T"], experts_per_token: int) -> Routes:
    """Softmax over all experts, the best `experts_per_token` of them, renormalised to sum to 1; all in float32.

    A row of logits whose softmax is NaN (one that holds NaN or infinity) gets NaN weights and experts 0, 1, ...
    """
    num_experts = logits.shape[1]
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    weights, experts = lax.top_k(probabilities, experts_per_token)
    weights = weights / weights.sum(axis=-1, keepdims=True)
    experts = jnp.where(valid[:, None], experts, num_experts)
    weights = jnp.where(valid[:, None], weights, 0.0)
    return Routes(experts, weights, *rank_rows(experts, num_experts))


def rank_rows(experts: Int[Array, "T A"], num_experts: int) -> tuple[Int[Array, "T A"], Int[Array, " E"]]:
    """Each row's rank among the rows of its expert, in token order, and how many rows each expert has.

    The A experts of a token are different, or `num_experts` for none (rank 0, counted nowhere).
    """
    chosen = (experts[..., None] == jnp.arange(num_experts)[None, None, :]).astype(jnp.int32)  # T A E
    per_token = chosen.sum(axis=1)
    earlier = jnp.cumsum(per_token, axis=0) - per_token
    return jnp.sum(chosen * earlier[:, None, :], axis=-1), per_token.sum(axis=0)


def permute(x: Float[Array, "T X"], places: Int[Array, "T A"], num_places: int) -> Float[Array, "P X"]:
    """Row `places[t, a]` of the result is x[t], for every t and a; a place of `num_places` is none.

    No two rows share a place. What is in the other rows is not specified, NaN included; here it is 0.
    """
    rows = jnp.repeat(x, places.shape[1], axis=0)
    return jnp.zeros((num_places, x.shape[1]), x.dtype).at[places.reshape(-1)].set(rows, mode="drop")


def combine(
    rows: Float[Array, "S P X"], places: Int[Array, "T A"], weights: Float[Array, "T A"]
) -> Float[Array, "T X"]:
    """Each token's weighted sum of its A rows, every row a sum of S parts; float32. A place of P counts as 0.

    The order of the sum is fixed: the same arguments give the same bits.
    """
    parts = rows.at[:, places].get(mode="fill", fill_value=0).astype(jnp.float32)  # S T A X
    return jnp.sum(parts.sum(axis=0) * weights[..., None], axis=1)


def expert_ffn(
    gate: Float[Array, "E F D"],
    up: Float[Array, "E F D"],
    down: Float[Array, "E D F"],
    x: Float[Array, "T D"],
    experts: Int[Array, "T A"],
    weights: Float[Array, "T A"],
) -> Float[Array, "T D"]:
    """Weighted sum of down(silu(gate x) * up x) over each token's A experts; float32. Expert E is none.

    Weights of experts that nobody chose are not read, and tokens do not mix: NaN in one reaches no other.
    """
    total = jnp.zeros(x.shape, jnp.float32)
    for e in range(gate.shape[0]):
        hidden = _product(x, gate[e])
        hidden = (jax.nn.silu(hidden) * _product(x, up[e])).astype(x.dtype)
        chosen = experts == e
        weight = jnp.sum(jnp.where(chosen, weights, 0.0), axis=1, keepdims=True)
        total += jnp.where(chosen.any(axis=1)[:, None], weight * _product(hidden, down[e]), 0.0)
    return total


def grouped_matmul(
    rows: Float[Array, "P I"], w: Float[Array, "E O I"], block_experts: Int[Array, " blocks"]
) -> Float[Array, "P O"]:
    """rows w[e]^T for each block of P / blocks rows, e its expert; float32.

    What is in blocks of expert E (none) is not specified; here it is 0. Rows do not mix.
    """
    blocks = rows.reshape(block_experts.shape[0], -1, rows.shape[1])
    product = jnp.zeros((*blocks.shape[:2], w.shape[1]), jnp.float32)
    for e in range(w.shape[0]):
        product = jnp.where((block_experts == e)[:, None, None], _product(blocks, w[e]), product)
    return product.reshape(rows.shape[0], -1)


def grouped_gate_up(
    rows: Float[Array, "P D"],
    gate: Float[Array, "E F D"],
    up: Float[Array, "E F D"],
    block_experts: Int[Array, " blocks"],
) -> Float[Array, "P F"]:
    """silu(rows gate[e]^T) * (rows up[e]^T), as `grouped_matmul`; in the dtype of `rows`."""
    hidden = jax.nn.silu(grouped_matmul(rows, gate, block_experts)) * grouped_matmul(rows, up, block_experts)
    return hidden.astype(rows.dtype)


def _product(x: Float[Array, "*rows I"], w: Float[Array, "O I"]) -> Float[Array, "*rows O"]:
    return lax.dot_general(
        x, w, (((x.ndim - 1,), (1,)), ((), ())), precision=PRECISE, preferred_element_type=jnp.float32
    )
