"""Where rows lie when they are sorted by expert and every expert's rows begin on a block."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Int


class BlockLayout(NamedTuple):
    """Block b of P / blocks rows belongs to expert `block_experts[b]`, or to none (E).

    places: int32 [T, A], the place of each row, P for rows routed to no expert.
    """

    places: Int[Array, "T A"]
    block_experts: Int[Array, " blocks"]


def most_blocks(rows: int, num_experts: int, block: int) -> int:
    """Most blocks of `block` rows that `rows` rows can need: every expert in use may leave one block part empty."""
    return (rows + min(num_experts, rows) * (block - 1)) // block


def block_layout(
    experts: Int[Array, "T A"], ranks: Int[Array, "T A"], counts: Int[Array, " E"], block: int
) -> BlockLayout:
    """The layout of rows with these experts, ranks within them, and counts (see `reference.rank_rows`)."""
    num_experts = counts.shape[0]
    blocks = most_blocks(experts.size, num_experts, block)
    ends = jnp.cumsum((counts + block - 1) // block)
    starts = ends - (counts + block - 1) // block
    # Sums of comparisons instead of a lookup: E is small, and this fuses into one elementwise kernel.
    chosen = experts[..., None] == jnp.arange(num_experts)[None, None, :]
    places = jnp.sum(jnp.where(chosen, starts[None, None, :] * block, 0), axis=-1) + ranks
    places = jnp.where(experts < num_experts, places, blocks * block)
    block_experts = jnp.sum(jnp.arange(blocks)[:, None] >= ends[None, :], axis=1)
    return BlockLayout(places.astype(jnp.int32), block_experts.astype(jnp.int32))
