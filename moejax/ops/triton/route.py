"""Top-k routing and the ranks of rows, without a sort: `reference.route` and `reference.rank_rows`.

One program takes a block of tokens; ranks come from a running sum down its one-hot [tokens, E] tile. If there are more
blocks, a second launch adds what earlier blocks counted. Both launches fix the order of every sum.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jaxtyping import Bool, Float, Int

from moejax.families.config import RouterPolicy
from moejax.ops import reference as operations
from moejax.ops.routing import Routing
from moejax.ops.triton.blocks import RouteBlock, route_block
from moejax.ops.triton.launch import Out, launch, load, store, within


def route(
    logits: Float[Array, "T E"], valid: Bool[Array, " T"], policy: RouterPolicy, *, interpret: bool = False
) -> Routing:
    """`reference.route` in one launch for few tokens, two for many."""
    e = logits.shape[1]
    return _route(logits, valid, policy, jnp.arange(e, dtype=jnp.int32), jnp.int32(0), e, interpret)[1]


def route_here(
    logits: Float[Array, "T E"],
    valid: Bool[Array, " T"],
    policy: RouterPolicy,
    table: Int[Array, "3 P"],
    first: Int[Array, ""] | None,
    places: int,
    *,
    interpret: bool = False,
) -> tuple[Int[Array, "T A"], Routing]:
    """`reference.route_here`, as `route`; where experts have several places, places are found in XLA."""
    if table.shape[1] != logits.shape[1]:
        return operations.route_here(
            logits, valid, policy, table, first, places, route=partial(route, interpret=interpret)
        )
    return _route(logits, valid, policy, table[0], jnp.int32(0) if first is None else first, places, interpret)


def _route(
    logits: Array, valid: Array, policy: RouterPolicy, held: Array, first: Array, places: int, interpret: bool
) -> tuple[Array, Routing]:
    """The experts chosen, and the routing to the `places` places from `first` on of those that hold the experts."""
    (t, e), a = logits.shape, policy.experts_per_token
    if t == 0:
        ids = jnp.zeros((0, a), jnp.int32)
        return ids, Routing(ids, jnp.zeros((0, a), jnp.float32), ids, jnp.zeros((places,), jnp.int32))
    block = route_block(t, e)
    blocks = pl.cdiv(t, block.tokens)

    def top_k(logits_ref, valid_ref, held_ref, first_ref, experts_ref, ids_ref, weights_ref, ranks_ref, counts_ref):
        tokens = pl.program_id(0) * block.tokens + jnp.arange(block.tokens)
        columns = jnp.arange(block.experts)
        shape = (block.tokens, block.experts)
        inside = jnp.broadcast_to((tokens < t)[:, None], shape) & (columns < e)[None, :]
        logits = load(logits_ref, (tokens[:, None], columns[None, :]), inside).astype(jnp.float32)
        logits = jnp.where(inside, logits, -jnp.inf)
        exponentials = jnp.exp(logits - logits.max(axis=1, keepdims=True))
        exponentials = jnp.where((columns < e)[None, :], exponentials, 0.0)
        total = exponentials.sum(axis=1)
        probabilities = exponentials / total[:, None]
        # NaN would make the comparisons below meaningless: such a row has all experts equal, and NaN as weights.
        broken = total != total
        left = jnp.where(broken[:, None], 0.0, probabilities)
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
        held, shift, ids = load(held_ref, (columns,), within(columns, e, block.experts), other=-1), first_ref[0], []
        for place in range(a):
            holds = jnp.where(chosen[place][:, None] == held[None, :], columns[None, :], 0)
            at = holds.sum(axis=1) - shift
            here = keep & (at >= 0) & (at < places)
            ids.append(jnp.where(here, at, places))
            weight = best[place] / norm if policy.renormalise else jnp.where(broken, jnp.nan, best[place])
            weight = jnp.where(here, weight if policy.scale == 1 else weight * policy.scale, 0.0)
            index = (tokens, jnp.full_like(tokens, place))
            store(experts_ref, index, chosen[place], tokens < t)
            store(ids_ref, index, ids[place], tokens < t)
            store(weights_ref, index, weight, tokens < t)
        _write_ranks(ranks_ref, counts_ref, tokens, ids, block, t, places)

    ints = Out((t, a), jnp.int32)
    experts, ids, weights, ranks, counts = launch(
        top_k,
        "route",
        (blocks,),
        (ints, ints, Out((t, a), jnp.float32), ints, Out((blocks, places), jnp.int32)),
        (logits, valid, held, first.reshape(1)),
        warps=block.warps,
        interpret=interpret,
    )
    return experts, Routing(ids, weights, *_add_earlier_blocks(ids, ranks, counts, block, interpret))


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
