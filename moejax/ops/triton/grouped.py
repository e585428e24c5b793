"""Experts for many tokens (prefill): blocks of sorted rows against their expert's weights, on tensor cores."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jaxtyping import Float, Int

from moejax.ops.triton.blocks import grouped_block
from moejax.ops.triton.launch import Out, both, dot, launch, load, silu, store, within
from moejax.runtime.platform import shared_memory_bytes

# Most blocks of outputs that run together over all rows of an expert: 8 blocks of 128 rows by 16 of outputs are about
# as many programs as a large GPU runs at a time, and share 8 MB of rows and 32 MB of weights in its second-level cache.
OUTPUTS_TOGETHER = 16


def grouped_matmul(
    rows: Float[Array, "P I"],
    w: Float[Array, "E O I"],
    block_experts: Int[Array, " blocks"],
    *,
    interpret: bool = False,
) -> Float[Array, "P O"]:
    """`reference.grouped_matmul`; blocks of expert E are left as the memory was."""
    return _product(rows, (w,), block_experts, jnp.float32, "grouped_matmul", lambda sums: sums[0], interpret)


def grouped_gate_up(
    rows: Float[Array, "P D"],
    gate: Float[Array, "E F D"],
    up: Float[Array, "E F D"],
    block_experts: Int[Array, " blocks"],
    *,
    interpret: bool = False,
) -> Float[Array, "P F"]:
    """`reference.grouped_gate_up`: both products of a row while it is in shared memory."""

    def gated(sums: tuple[Array, ...]) -> Array:
        return silu(sums[0]) * sums[1]

    return _product(rows, (gate, up), block_experts, rows.dtype, "grouped_gate_up", gated, interpret)


def _product(
    rows: Array,
    weights: tuple[Array, ...],
    block_experts: Array,
    dtype: jax.typing.DTypeLike,
    name: str,
    finish: Callable[[tuple[Array, ...]], Array],
    interpret: bool,
) -> Array:
    """finish(rows w[e]^T for each w). Programs: blocks of rows x blocks of outputs, `OUTPUTS_TOGETHER` at a time."""
    num_places, contracted = rows.shape
    num_experts, outputs, _ = weights[0].shape
    row_blocks = block_experts.shape[0]
    if num_places == 0:
        return jnp.zeros((0, outputs), dtype)
    height = num_places // row_blocks
    block = grouped_block(height, outputs, contracted, rows.dtype.itemsize, len(weights), shared_memory_bytes())
    out_blocks = pl.cdiv(outputs, block.out)
    together = max(n for n in range(1, OUTPUTS_TOGETHER + 1) if out_blocks % n == 0)

    def kernel(rows_ref, *refs):
        *weight_refs, experts_ref, product_ref = refs
        group, rest = pl.program_id(0) // (row_blocks * together), pl.program_id(0) % (row_blocks * together)
        row_block, out_block = rest // together, group * together + rest % together
        expert = experts_ref[row_block]

        @pl.when(expert < num_experts)
        def _():
            places = row_block * height + jnp.arange(block.rows)
            place_mask = within(jnp.arange(block.rows), height, block.rows)
            outs = out_block * block.out + jnp.arange(block.out)
            out_mask = within(outs, outputs, block.out)

            def step(i, sums):
                inputs = i * block.contracted + jnp.arange(block.contracted)
                in_mask = within(inputs, contracted, block.contracted)
                row_mask = both(place_mask, in_mask, (block.rows, block.contracted))
                mask = both(out_mask, in_mask, (block.out, block.contracted))
                these = load(rows_ref, (places[:, None], inputs[None, :]), row_mask)
                index = (expert, outs[:, None], inputs[None, :])
                return tuple(
                    total + dot(these, load(ref, index, mask)) for total, ref in zip(sums, weight_refs, strict=True)
                )

            zeros = jnp.zeros((block.rows, block.out), jnp.float32)
            sums = lax.fori_loop(0, pl.cdiv(contracted, block.contracted), step, (zeros,) * len(weights))
            product = finish(sums).astype(product_ref.dtype)
            mask = both(place_mask, out_mask, (block.rows, block.out))
            store(product_ref, (places[:, None], outs[None, :]), product, mask)

    (product,) = launch(
        kernel,
        name,
        (row_blocks * out_blocks,),
        (Out((num_places, outputs), dtype),),
        (rows, *weights, block_experts),
        warps=block.warps,
        stages=block.stages,
        interpret=interpret,
    )
    return product
