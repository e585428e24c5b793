"""Top-k routing and the ranks of rows, without a sort: `reference.route` and `reference.rank_rows`.

One program takes a block of tokens; ranks come from a running sum down its one-hot [tokens, E] tile. If there are more
blocks, a second launch adds what earlier blocks counted. Both launches fix the order of every sum.
"""

import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jaxtyping import Bool, Float, Int

from moejax.ops.reference import Routes
from moejax.ops.triton.blocks import RouteBlock, route_block
from moejax.ops.triton.launch import Out, launch, load, store, within


def route(
    logits: Float[Array, "T E"], valid: Bool[Array, " T"], experts_per_token: int, *, interpret: bool = False
) -> Routes:
    """`reference.route` in one launch for few tokens, two for many."""
    (t, e), a = logits.shape, experts_per_token
    if t == 0:
        return Routes(
            jnp.zeros((0, a), jnp.int32),
            jnp.zeros((0, a), jnp.float32),
            jnp.zeros((0, a), jnp.int32),
            jnp.zeros((e,), jnp.int32),
        )
    block = route_block(t, e)
    blocks = pl.cdiv(t, block.tokens)

    def top_k(logits_ref, valid_ref, experts_ref, weights_ref, ranks_ref, counts_ref):
        tokens = pl.program_id(0) * block.tokens + jnp.arange(block.tokens)
        columns = jnp.arange(block.experts)
        shape = (block.tokens, block.experts)
        inside = jnp.broadcast_to((tokens < t)[:, None], shape) & (columns < e)[None, :]
        logits = load(logits_ref, (tokens[:, None], columns[None, :]), inside).astype(jnp.float32)
        logits = jnp.where(inside, logits, -jnp.inf)
        exponentials = jnp.exp(logits - logits.max(axis=1, keepdims=True))
        exponentials = jnp.where((columns < e)[None, :], exponentials, 0.0)
        total = exponentials.sum(axis=1, keepdims=True)
        probabilities = exponentials / total
        # NaN would make the comparisons below meaningless: such a row has all experts equal, and weights of 0 / 0.
        broken = total != total
        left = jnp.where(broken, 0.0, probabilities)
        left = jnp.where((columns < e)[None, :], left, -1.0)
        keep = load(valid_ref, (tokens,), tokens < t, other=False)

        chosen, best, norm = [], [], jnp.zeros((block.tokens,), jnp.float32)
        for _ in range(a):
            choice = jnp.argmax(left, axis=1).astype(jnp.int32)  # the lower id where two are equal
            weight = left.max(axis=1)
            left = jnp.where(columns[None, :] == choice[:, None], -2.0, left)
            chosen.append(jnp.where(keep, choice, e))
            best.append(weight)
            norm += weight
        for place in range(a):
            weight = jnp.where(keep, best[place] / norm, 0.0)
            store(experts_ref, (tokens, jnp.full_like(tokens, place)), chosen[place], tokens < t)
            store(weights_ref, (tokens, jnp.full_like(tokens, place)), weight, tokens < t)
        _write_ranks(ranks_ref, counts_ref, tokens, chosen, block, t, e)

    experts, weights, ranks, counts = launch(
        top_k,
        "route",
        (blocks,),
        (Out((t, a), jnp.int32), Out((t, a), jnp.float32), Out((t, a), jnp.int32), Out((blocks, e), jnp.int32)),
        (logits, valid),
        warps=block.warps,
        interpret=interpret,
    )
    return Routes(experts, weights, *_add_earlier_blocks(experts, ranks, counts, block, interpret))


def rank_rows(
    experts: Int[Array, "T A"], num_experts: int, *, interpret: bool = False
) -> tuple[Int[Array, "T A"], Int[Array, " E"]]:
    """`reference.rank_rows` in one launch for few tokens, two for many."""
    (t, a), e = experts.shape, num_experts
    if t == 0:
        return jnp.zeros((0, a), jnp.int32), jnp.zeros((e,), jnp.int32)
    block = route_block(t, e)
    blocks = pl.cdiv(t, block.tokens)

    def rank(experts_ref, ranks_ref, counts_ref):
        tokens = pl.program_id(0) * block.tokens + jnp.arange(block.tokens)
        chosen = [load(experts_ref, (tokens, jnp.full_like(tokens, c)), tokens < t, other=e) for c in range(a)]
        _write_ranks(ranks_ref, counts_ref, tokens, chosen, block, t, e)

    ranks, counts = launch(
        rank,
        "rank_rows",
        (blocks,),
        (Out((t, a), jnp.int32), Out((blocks, e), jnp.int32)),
        (experts,),
        warps=block.warps,
        interpret=interpret,
    )
    return _add_earlier_blocks(experts, ranks, counts, block, interpret)


def _write_ranks(ranks_ref, counts_ref, tokens: Array, chosen: list[Array], block: RouteBlock, t: int, e: int) -> None:
    """Ranks within this block, and how many rows of it each expert has."""
    columns = jnp.arange(block.experts)
    one_hot = jnp.zeros((block.tokens, block.experts), jnp.int32)
    for choice in chosen:
        mine = (choice[:, None] == columns[None, :]) & (tokens < t)[:, None] & (columns < e)[None, :]
        one_hot += mine.astype(jnp.int32)
    earlier = jnp.cumsum(one_hot, axis=0) - one_hot
    for place, choice in enumerate(chosen):
        mine = (choice[:, None] == columns[None, :]) & (columns < e)[None, :]
        rank = jnp.where(mine, earlier, 0).sum(axis=1)
        store(ranks_ref, (tokens, jnp.full_like(tokens, place)), rank, tokens < t)
    store(counts_ref, (pl.program_id(0), columns), one_hot.sum(axis=0), within(columns, e, block.experts))


def _add_earlier_blocks(
    experts: Array, ranks: Array, counts: Array, block: RouteBlock, interpret: bool
) -> tuple[Array, Array]:
    """Ranks over all blocks instead of one, and counts summed over the blocks [blocks, E]."""
    (t, a), (blocks, e) = experts.shape, counts.shape
    if blocks == 1:
        return ranks, counts[0]

    def add_offsets(experts_ref, ranks_ref, counts_ref, totals_ref, out_ref):
        this = pl.program_id(0)
        tokens = this * block.tokens + jnp.arange(block.tokens)
        columns = jnp.arange(block.experts)
        # `block.tokens` blocks at a time: a tile of the size that the first launch had.
        before = jnp.zeros((block.experts,), jnp.int32)
        total = jnp.zeros((block.experts,), jnp.int32)
        for first in range(0, blocks, block.tokens):
            rows = first + jnp.arange(block.tokens)
            inside = jnp.broadcast_to((rows < blocks)[:, None], (block.tokens, block.experts)) & (columns < e)[None, :]
            some = load(counts_ref, (rows[:, None], columns[None, :]), inside)
            before += jnp.where((rows < this)[:, None], some, 0).sum(axis=0)
            total += some.sum(axis=0)
        for place in range(a):
            at = (tokens, jnp.full_like(tokens, place))
            choice = load(experts_ref, at, tokens < t, other=e)
            mine = (choice[:, None] == columns[None, :]) & (columns < e)[None, :]
            rank = load(ranks_ref, at, tokens < t) + jnp.where(mine, before[None, :], 0).sum(axis=1)
            store(out_ref, at, rank, tokens < t)
        # Every program has the same totals; the first one writes them.
        store(totals_ref, (columns,), total, (columns < e) & (this == 0))

    totals, out = launch(
        add_offsets,
        "add_earlier_blocks",
        (blocks,),
        (Out((e,), jnp.int32), Out((t, a), jnp.int32)),
        (experts, ranks, counts),
        warps=block.warps,
        interpret=interpret,
    )
    return out, totals
