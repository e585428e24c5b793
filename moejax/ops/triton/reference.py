"""The specification of the kernels that are steps of an operation, in plain jax.numpy, with the same signatures.

Dimensions as everywhere, and P places of expert-sorted rows, S partial sums of a row, X the width of a row.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from moejax.families.config import RouterPolicy
from moejax.ops import reference
from moejax.ops.reference import project
from moejax.ops.routing import Routing


def route(logits: Float[Array, "T E"], valid: Bool[Array, " T"], policy: RouterPolicy) -> Routing:
    """`ops.reference.route`, with ranks and counts."""
    routed = reference.route(logits, valid, policy)
    ranks, counts = rank_rows(routed.experts, logits.shape[1])
    return routed._replace(ranks=ranks, counts=counts)


def route_here(
    logits: Float[Array, "T E"],
    valid: Bool[Array, " T"],
    policy: RouterPolicy,
    table: Int[Array, "3 P"],
    first: Int[Array, ""] | None,
    places: int,
) -> tuple[Int[Array, "T A"], Routing]:
    """`ops.reference.route_here`, with ranks and counts of this device's rows where every expert has one place."""
    experts, here = reference.route_here(logits, valid, policy, table, first, places)
    if table.shape[1] != logits.shape[1]:
        return experts, here
    ranks, counts = rank_rows(here.experts, places)
    return experts, here._replace(ranks=ranks, counts=counts)


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
    rows: Float[Array, "S P X"],
    places: Int[Array, "T A"],
    weights: Float[Array, "T A"],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Float[Array, "T X"]:
    """Each token's weighted sum of its A rows, every row a sum of S parts, rounded once. A place of P counts as 0.

    The order of the sum is fixed: the same arguments give the same bits.
    """
    parts = rows.at[:, places].get(mode="fill", fill_value=0).astype(jnp.float32)  # S T A X
    return jnp.sum(parts.sum(axis=0) * weights[..., None], axis=1).astype(dtype)


def grouped_matmul(
    rows: Float[Array, "P I"], w: Float[Array, "E O I"], block_experts: Int[Array, " blocks"]
) -> Float[Array, "P O"]:
    """rows w[e]^T for each block of P / blocks rows, e its expert; float32.

    What is in blocks of expert E (none) is not specified; here it is 0. Rows do not mix.
    """
    blocks = rows.reshape(block_experts.shape[0], -1, rows.shape[1])
    product = jnp.zeros((*blocks.shape[:2], w.shape[1]), jnp.float32)
    for e in range(w.shape[0]):
        product = jnp.where((block_experts == e)[:, None, None], project(blocks, w[e])[0], product)
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
