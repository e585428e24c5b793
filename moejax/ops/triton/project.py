"""Products of few rows with whole matrices: every weight is read once, straight through to its own output.

The weights are one side of a tensor core's tile and all rows the other, as in `few_tokens`; no sum is divided, so that
nothing is left to add. More rows are XLA's.
"""

from itertools import accumulate, pairwise

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jaxtyping import Float

from moejax.ops.triton.blocks import project_block
from moejax.ops.triton.few_tokens import MOST_TOKENS
from moejax.ops.triton.launch import Out, both, dot, launch, load, store, within
from moejax.runtime.platform import shared_memory_bytes


def project(
    x: Float[Array, "T I"],
    *weights: Float[Array, "O I"],
    dtype: jax.typing.DTypeLike = jnp.float32,
    interpret: bool = False,
) -> tuple[Float[Array, "T O"], ...]:
    """`reference.project` of at most `MOST_TOKENS` rows in one launch. Programs: blocks of the outputs of each weight.

    Raises:
        NotImplementedError: for more rows.
    """
    (t, inputs), sizes = x.shape, [w.shape[0] for w in weights]
    if t > MOST_TOKENS:
        raise NotImplementedError(f"project takes at most {MOST_TOKENS} rows, got {t}")
    block = project_block(t, sum(sizes), inputs, x.dtype.itemsize, shared_memory_bytes())
    firsts = list(accumulate((pl.cdiv(size, block.out) for size in sizes), initial=0))

    def products(x_ref, *refs):
        program, rows = pl.program_id(0), jnp.arange(block.rows)
        row_mask = within(rows, t, block.rows)

        def product(weight_ref, y_ref, first, size):
            outs = (program - first) * block.out + jnp.arange(block.out)
            out_mask = within(outs, size, block.out)

            def step(i, sums):
                columns = i * block.contracted + jnp.arange(block.contracted)
                column_mask = within(columns, inputs, block.contracted)
                these = load(
                    x_ref,
                    (rows[:, None], columns[None, :]),
                    both(row_mask, column_mask, (block.rows, block.contracted)),
                )
                mask = both(out_mask, column_mask, (block.out, block.contracted))
                return sums + dot(these, load(weight_ref, (outs[:, None], columns[None, :]), mask, once=True))

            sums = jnp.zeros((block.rows, block.out), jnp.float32)
            sums = lax.fori_loop(0, pl.cdiv(inputs, block.contracted), step, sums)
            mask = both(row_mask, out_mask, (block.rows, block.out))
            store(y_ref, (rows[:, None], outs[None, :]), sums.astype(y_ref.dtype), mask)

        for place, (first, last) in enumerate(pairwise(firsts)):
            weight_ref, y_ref, size = refs[place], refs[len(sizes) + place], sizes[place]
            if len(sizes) == 1:
                product(weight_ref, y_ref, first, size)
            else:
                pl.when((program >= first) & (program < last))(
                    lambda weight_ref=weight_ref, y_ref=y_ref, first=first, size=size: product(
                        weight_ref, y_ref, first, size
                    )
                )

    return launch(
        products,
        "project",
        (firsts[-1],),
        tuple(Out((t, size), dtype) for size in sizes),
        (x, *weights),
        warps=block.warps,
        stages=block.stages,
        interpret=interpret,
    )
