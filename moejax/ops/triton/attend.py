"""Softmax attention over the cache: `reference.attend`, of which only blocks are read that some query sees, and once.

Several queries: a program has a block of queries of all heads that share a key/value head, and walks over the blocks of
keys with a running softmax (Dao et al., arXiv:2205.14135). One query: the keys are divided among programs, and a second
launch weights their parts, in order and without atomics (Dao et al., "Flash-Decoding", 2023).

Keys and values are found through a table of pages: a cache of whole sequences has one page for each.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jaxtyping import Float, Int

from moejax.families.config import AttentionPolicy
from moejax.ops.reference import capped
from moejax.ops.triton.blocks import AttendBlock, attend_block, key_splits
from moejax.ops.triton.launch import Out, both, dot, launch, load, store, within
from moejax.runtime.platform import shared_memory_bytes

_MASKED = -1e30  # finite: a row that has seen nothing yet must not become NaN


def attend(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    starts: Int[Array, " B"],
    policy: AttentionPolicy,
    sinks: Float[Array, "K G"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "B K G T H"]:
    """`reference.attend`, in the dtype of q: one launch for several queries, at most two for one."""
    pages = jnp.asarray(np.arange(k.shape[0], dtype=np.int32)[:, None])  # a constant, not a kernel that makes it
    return attend_pages(q, k, v, pages, starts, policy, sinks, interpret=interpret)


def attend_pages(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "P K S H"],
    v: Float[Array, "P K S H"],
    pages: Int[Array, "B M"],
    starts: Int[Array, " B"],
    policy: AttentionPolicy,
    sinks: Float[Array, "K G"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "B K G T H"]:
    """`attend` over pages of S positions: position p of sequence b is at place p % S of page pages[b, p // S].

    Raises:
        ValueError: where a sequence has several pages and they are no whole blocks of keys.
    """
    (b, kv, g, t, h), (size, each) = q.shape, (k.shape[2], pages.shape[1])
    block = attend_block(g, t, h, size, q.dtype.itemsize, shared_memory_bytes())
    if each > 1 and size % block.keys:
        raise ValueError(f"pages of {size} positions are not read in blocks of {block.keys}; expected a multiple")
    walk = _KeyWalk(block=block, policy=policy, heads=g, queries=t, width=h, page=size, pages=each, kv_heads=kv)
    operands = (q, k, v, pages.astype(jnp.int32), starts.astype(jnp.int32))
    splits = key_splits(b * kv, each * pl.cdiv(size, block.keys)) if t == 1 else 1
    given = () if sinks is None else (sinks.astype(jnp.float32),)
    if splits == 1:
        return _whole(walk, (*operands, *given), interpret)
    return _weighted_sum(walk, (*_parts(walk, splits, operands, interpret), *given), q.dtype, interpret)


class _Sums(NamedTuple):
    """A running softmax of R rows: numerators [R, H], denominators [R] and largest scores [R] so far."""

    total: Array
    denominator: Array
    peak: Array


@dataclass(frozen=True, kw_only=True)
class _KeyWalk:
    """The way of one program over the blocks of keys that its queries see.

    block: rows and keys at a time.  heads, queries, width: G, T and H of the queries.  page, pages: S and M.
    kv_heads: K; the last axis of the grid has a program for each sequence and key/value head.
    """

    block: AttendBlock
    policy: AttentionPolicy
    heads: int
    queries: int
    width: int
    page: int
    pages: int
    kv_heads: int

    def sequence_and_head(self, axis: int) -> tuple[Array, Array]:
        """What the program's id on that axis of the grid stands for."""
        program = pl.program_id(axis)
        return program // self.kv_heads, program % self.kv_heads

    def rows(self, first_query: Array | int) -> tuple[Array, Array, Array]:
        """The head and the query of every row, and whether it is one: [R] each. Rows of a head are next to another."""
        row = jnp.arange(self.block.rows)
        heads, queries = row // self.block.queries, first_query + row % self.block.queries
        return heads, queries, (heads < self.heads) & (queries < self.queries)

    def columns(self) -> tuple[Array, Array | None]:
        """The places of a head's width, padded, and the mask of those that are there."""
        columns = jnp.arange(self.block.width)
        return columns, within(columns, self.width, self.block.width)

    def seen(self, start: Array, first_query: Array | int) -> tuple[Array, Array]:
        """The first position that one of the program's queries sees, and the last."""
        last = start + jnp.minimum(first_query + self.block.queries, self.queries) - 1
        last = jnp.minimum(last, self.page * self.pages - 1)
        if (window := self.policy.window) is None:
            return 0 * last, last
        return jnp.maximum(start + first_query - window + 1, 0), last

    def over(
        self, refs: tuple[Any, ...], place: tuple[Array, Array], first_query: Array | int, part: Array, parts: int
    ) -> _Sums:
        """The sums over one part of the blocks that the queries from `first_query` on see."""
        q_ref, k_ref, v_ref, pages_ref, starts_ref = refs
        (sequence, head), block = place, self.block
        (heads, queries, real), (columns, column_mask) = self.rows(first_query), self.columns()
        start = starts_ref[sequence]
        mask = both(real, column_mask, (block.rows, block.width))
        q = load(q_ref, (sequence, head, heads[:, None], queries[:, None], columns[None, :]), mask)
        positions = start + queries
        first, last = self.seen(start, first_query)
        begin, blocks = first // block.keys, last // block.keys + 1 - first // block.keys
        share = (blocks + parts - 1) // parts
        end = jnp.minimum(begin + (part + 1) * share, begin + blocks)

        def step(i: Array, sums: _Sums) -> _Sums:
            slots = i * block.keys + jnp.arange(block.keys)
            page = pages_ref[sequence, i * block.keys // self.page]
            index = (page, head, (slots % self.page)[:, None], columns[None, :])
            # What nobody sees is not read: it may be anything, and zero times NaN is NaN.
            read = both((slots >= first) & (slots <= last), column_mask, (block.keys, block.width))
            distance = positions[:, None] - slots[None, :]
            visible = (distance >= 0) & (slots <= last)[None, :]
            if self.policy.window is not None:
                visible &= distance < self.policy.window
            scores = dot(q, load(k_ref, index, read)) * self.policy.scale_of(self.width)
            scores = capped(scores, self.policy)
            scores = jnp.where(visible, scores, _MASKED)
            peak = jnp.maximum(sums.peak, scores.max(axis=1))
            weights, shrink = jnp.exp(scores - peak[:, None]), jnp.exp(sums.peak - peak)
            values = load(v_ref, index, read)
            total = sums.total * shrink[:, None] + _product(weights.astype(values.dtype), values)
            return _Sums(total, sums.denominator * shrink + weights.sum(axis=1), peak)

        rows = (block.rows,)
        empty = _Sums(
            jnp.zeros((block.rows, block.width), jnp.float32),
            jnp.zeros(rows, jnp.float32),
            jnp.full(rows, _MASKED, jnp.float32),
        )
        return lax.fori_loop(begin + part * share, end, step, empty)


def _whole(walk: _KeyWalk, operands: tuple[Array, ...], interpret: bool) -> Array:
    """All of the sum. Programs: blocks of queries x sequences and their key/value heads."""
    q, block = operands[0], walk.block

    def attend(q_ref, k_ref, v_ref, pages_ref, starts_ref, *refs):
        *sinks, y_ref = refs
        place, first_query = walk.sequence_and_head(1), pl.program_id(0) * block.queries
        sums = walk.over((q_ref, k_ref, v_ref, pages_ref, starts_ref), place, first_query, jnp.int32(0), 1)
        (heads, queries, real), (columns, column_mask) = walk.rows(first_query), walk.columns()
        index = (*place, heads[:, None], queries[:, None], columns[None, :])
        denominator = sums.denominator
        for sinks_ref in sinks:
            denominator += jnp.exp(load(sinks_ref, (place[1], heads), real) - sums.peak)
        y = sums.total / denominator[:, None]
        store(y_ref, index, y.astype(y_ref.dtype), both(real, column_mask, (block.rows, block.width)))

    (y,) = launch(
        attend,
        "attend",
        (pl.cdiv(walk.queries, block.queries), q.shape[0] * walk.kv_heads),
        (Out(q.shape, q.dtype),),
        operands,
        warps=block.warps,
        stages=block.stages,
        interpret=interpret,
    )
    return y


def _parts(walk: _KeyWalk, parts: int, operands: tuple[Array, ...], interpret: bool) -> tuple[Array, Array, Array]:
    """The sums of one query per head over each part of its keys: [B, K, parts, G, H], and twice [B, K, parts, G].

    Programs: parts x sequences and their key/value heads.
    """
    (b, kv, g, _, h), block = operands[0].shape, walk.block

    def attend_part(q_ref, k_ref, v_ref, pages_ref, starts_ref, total_ref, denominator_ref, peak_ref):
        place, part = walk.sequence_and_head(1), pl.program_id(0)
        sums = walk.over((q_ref, k_ref, v_ref, pages_ref, starts_ref), place, 0, part, parts)
        (heads, _, real), (columns, column_mask) = walk.rows(0), walk.columns()
        index = (*place, part, heads[:, None], columns[None, :])
        store(total_ref, index, sums.total, both(real, column_mask, (block.rows, block.width)))
        store(denominator_ref, (*place, part, heads), sums.denominator, real)
        store(peak_ref, (*place, part, heads), sums.peak, real)

    each = Out((b, kv, parts, g), jnp.float32)
    totals, denominators, peaks = launch(
        attend_part,
        "attend_part",
        (parts, b * kv),
        (Out((b, kv, parts, g, h), jnp.float32), each, each),
        operands,
        warps=block.warps,
        stages=block.stages,
        interpret=interpret,
    )
    return totals, denominators, peaks


def _weighted_sum(walk: _KeyWalk, operands: tuple[Array, ...], dtype: Any, interpret: bool) -> Array:
    """The parts together: [B, K, G, 1, H]. Programs: heads x sequences and their key/value heads."""
    b, kv, parts, g, h = operands[0].shape

    def add_parts(total_ref, denominator_ref, peak_ref, *refs):
        *sinks, y_ref = refs
        place, head = walk.sequence_and_head(1), pl.program_id(0)
        (columns, column_mask), part = walk.columns(), jnp.arange(parts)
        peak = load(peak_ref, (*place, part, head))
        highest = peak.max()
        weight = jnp.exp(peak - highest)
        denominator = (weight * load(denominator_ref, (*place, part, head))).sum()
        for sinks_ref in sinks:
            denominator += jnp.exp(load(sinks_ref, (place[1], head)) - highest)
        mask = both(None, column_mask, (parts, walk.block.width))
        total = load(total_ref, (*place, part[:, None], head, columns[None, :]), mask)
        y = (weight[:, None] * total).sum(axis=0) / denominator
        store(y_ref, (*place, head, 0, columns), y.astype(y_ref.dtype), column_mask)

    (y,) = launch(
        add_parts,
        "add_parts",
        (g, b * kv),
        (Out((b, kv, g, 1, h), dtype),),
        operands,
        warps=4,
        interpret=interpret,
    )
    return y


def _product(a: Array, b: Array) -> Array:
    """a b in float32."""
    return lax.dot_general(
        a, b, (((1,), (0,)), ((), ())), precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
