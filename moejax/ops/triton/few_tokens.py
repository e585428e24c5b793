"""Experts for few tokens (decode): every chosen expert's weights are read once, nothing else of them.

The weights are one side of a tensor core's tile and all tokens the other, which costs nothing while the weights arrive:
copied ahead through shared memory, more bytes are on their way than if they went straight to registers, also for one
token, whose second product sums its experts besides.
"""

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jaxtyping import Float, Int

from moejax.ops.triton.blocks import down_splits, few_tokens_block, project_block
from moejax.ops.triton.launch import Out, both, dot, launch, load, silu, store, within
from moejax.ops.triton.permute import combine_in_order
from moejax.runtime.platform import shared_memory_bytes

MOST_TOKENS = 64  # a tile of more tokens would need more registers and shared memory than it can have


def expert_ffn(
    gate: Float[Array, "E F D"],
    up: Float[Array, "E F D"],
    down: Float[Array, "E D F"],
    x: Float[Array, "T D"],
    experts: Int[Array, "T A"],
    weights: Float[Array, "T A"],
    *,
    interpret: bool = False,
) -> Float[Array, "T D"]:
    """`reference.expert_ffn`, rounded to the dtype of x, in two launches for one token and three for more.

    Raises:
        NotImplementedError: for more than `MOST_TOKENS` tokens.
    """
    tokens = x.shape[0]
    if tokens == 0:
        return x
    if tokens > MOST_TOKENS:
        raise NotImplementedError(
            f"expert_ffn takes at most {MOST_TOKENS} tokens, got {tokens}; use grouped_gate_up and grouped_matmul"
        )
    hidden = _gate_up(gate, up, x, experts, interpret)
    if tokens == 1:
        return _one_token_down(down, hidden, experts, weights, interpret)
    parts = _down(down, hidden, experts, interpret)
    return combine_in_order(parts, experts, gate.shape[0], weights, x.dtype, interpret=interpret)


def _one_token_down(down: Array, hidden: Array, experts: Array, weights: Array, interpret: bool) -> Array:
    """The weighted sum of down hidden over the chosen experts: [1, D]. Programs: blocks of D.

    A program reads its rows of all A experts one after the other, so nothing is left to sum afterwards.
    """
    (num_experts, d, f), a = down.shape, experts.shape[1]
    block = project_block(1, d, f, hidden.dtype.itemsize, shared_memory_bytes())

    def weighted_down(hidden_ref, experts_ref, weights_ref, down_ref, y_ref):
        outs = pl.program_id(0) * block.out + jnp.arange(block.out)
        out_mask = within(outs, d, block.out)
        row = jnp.arange(block.rows)  # a tile for the tensor cores, of which one row is there
        total = jnp.zeros((block.out,), jnp.float32)
        for place in range(a):
            expert = experts_ref[0, place]

            def step(i, sums, place=place, expert=expert):
                inputs = i * block.contracted + jnp.arange(block.contracted)
                in_mask = within(inputs, f, block.contracted)
                these = load(
                    hidden_ref,
                    (place + row[:, None], inputs[None, :]),
                    both(row < 1, in_mask, (block.rows, block.contracted)),
                )
                mask = both(out_mask, in_mask, (block.out, block.contracted))
                return sums + dot(load(down_ref, (expert, outs[:, None], inputs[None, :]), mask, once=True), these)

            steps = (expert < num_experts).astype(jnp.int32) * pl.cdiv(f, block.contracted)
            sums = lax.fori_loop(0, steps, step, jnp.zeros((block.out, block.rows), jnp.float32))
            total += weights_ref[0, place] * sums.sum(axis=1)
        store(y_ref, (0, outs), total.astype(y_ref.dtype), out_mask)

    (y,) = launch(
        weighted_down,
        "one_token_down",
        (pl.cdiv(d, block.out),),
        (Out((1, d), hidden.dtype),),
        (hidden, experts, weights, down),
        warps=block.warps,
        stages=block.stages,
        interpret=interpret,
    )
    return y


def _gate_up(gate: Array, up: Array, x: Array, experts: Array, interpret: bool) -> Array:
    """silu(gate x) * up x of every row (token, chosen expert): [T A, F]. Programs: blocks of F x experts in use.

    Rows routed to no expert are not written.
    """
    (num_experts, f, d), (t, a) = gate.shape, experts.shape
    block = few_tokens_block(t, d, x.dtype.itemsize, 2, shared_memory_bytes())

    def gate_up(x_ref, experts_ref, gate_ref, up_ref, hidden_ref):
        out_block, slot = pl.program_id(0), pl.program_id(1)
        expert, rows = _expert_and_rows(experts_ref, num_experts, slot, block.rows)

        @pl.when(_is_first(rows, num_experts, t * a, slot))
        def _():
            tokens = jnp.arange(block.rows)
            outs = out_block * block.out + jnp.arange(block.out)
            out_mask = within(outs, f, block.out)

            def step(i, sums):
                inputs = i * block.contracted + jnp.arange(block.contracted)
                in_mask = within(inputs, d, block.contracted)
                mask = both(out_mask, in_mask, (block.out, block.contracted))
                index = (expert, outs[:, None], inputs[None, :])
                # Tokens of other experts count as zero: they are not even read.
                token_mask = both(rows < t * a, in_mask, (block.rows, block.contracted))
                these = load(x_ref, (tokens[:, None], inputs[None, :]), token_mask)
                return (
                    sums[0] + dot(load(gate_ref, index, mask, once=True), these),
                    sums[1] + dot(load(up_ref, index, mask, once=True), these),
                )

            zeros = jnp.zeros((block.out, block.rows), jnp.float32)
            gated, upped = lax.fori_loop(0, pl.cdiv(d, block.contracted), step, (zeros, zeros))
            hidden = (silu(gated) * upped).astype(hidden_ref.dtype)
            mask = both(out_mask, rows < t * a, (block.out, block.rows))
            store(hidden_ref, (rows[None, :], outs[:, None]), hidden, mask)

    (hidden,) = launch(
        gate_up,
        "few_tokens_gate_up",
        (pl.cdiv(f, block.out), min(num_experts, t * a)),
        (Out((t * a, f), x.dtype),),
        (x, experts, gate, up),
        warps=block.warps,
        stages=block.stages,
        interpret=interpret,
    )
    return hidden


def _down(down: Array, hidden: Array, experts: Array, interpret: bool) -> Array:
    """down hidden of every row, in S parts of the sum over F: [S, T A, D]. Programs: blocks of D x experts x parts."""
    (num_experts, d, f), (t, a) = down.shape, experts.shape
    block = few_tokens_block(t, f, hidden.dtype.itemsize, 1, shared_memory_bytes())
    slots = min(num_experts, t * a)
    splits = down_splits(pl.cdiv(d, block.out) * slots, pl.cdiv(f, block.contracted))
    steps = pl.cdiv(pl.cdiv(f, block.contracted), splits)

    def down_part(hidden_ref, experts_ref, down_ref, parts_ref):
        out_block, slot, part = pl.program_id(0), pl.program_id(1), pl.program_id(2)
        expert, rows = _expert_and_rows(experts_ref, num_experts, slot, block.rows)

        @pl.when(_is_first(rows, num_experts, t * a, slot))
        def _():
            outs = out_block * block.out + jnp.arange(block.out)
            out_mask = within(outs, d, block.out)

            def step(i, sums):
                inputs = (part * steps + i) * block.contracted + jnp.arange(block.contracted)
                in_mask = within(inputs, f, splits * steps * block.contracted)
                mask = both(out_mask, in_mask, (block.out, block.contracted))
                row_mask = both(rows < t * a, in_mask, (block.rows, block.contracted))
                these = load(hidden_ref, (rows[:, None], inputs[None, :]), row_mask)
                weights = load(down_ref, (expert, outs[:, None], inputs[None, :]), mask, once=True)
                return sums + dot(weights, these)

            sums = lax.fori_loop(0, steps, step, jnp.zeros((block.out, block.rows), jnp.float32))
            mask = both(out_mask, rows < t * a, (block.out, block.rows))
            store(parts_ref, (part, rows[None, :], outs[:, None]), sums, mask)

    (parts,) = launch(
        down_part,
        "few_tokens_down",
        (pl.cdiv(d, block.out), slots, splits),
        (Out((splits, t * a, d), jnp.float32),),
        (hidden, experts, down),
        warps=block.warps,
        stages=block.stages,
        interpret=interpret,
    )
    return parts


def _expert_and_rows(experts_ref, num_experts: int, slot: Array, tokens: int) -> tuple[Array, Array]:
    """The expert of a slot, and for every token its row t A + a with that expert, or T A where it has none.

    With fewer experts than rows a slot is an expert, otherwise a row: then of the slots with the same expert the first
    one computes it.
    """
    t, a = experts_ref.shape
    expert = slot if num_experts <= t * a else experts_ref[slot // a, slot % a]
    token = jnp.arange(tokens)
    rows = jnp.full((tokens,), t * a, jnp.int32)
    for place in range(a):
        chosen = load(experts_ref, (token, place), within(token, t, tokens), other=num_experts)
        rows = jnp.where((chosen == expert) & (expert < num_experts), token * a + place, rows)
    return expert, rows


def _is_first(rows: Array, num_experts: int, num_rows: int, slot: Array) -> Array:
    """Whether this slot computes: somebody chose its expert, and no earlier slot has the same."""
    first = jnp.min(rows)
    return first < num_rows if num_experts <= num_rows else first == slot
