"""Backend `blocked`: each expert loops over blocks of its own rows, as many as it has.

The trip count is a run-time value, so an expert nobody chose is neither read nor computed. Each expert's matrices
are arrays of their own: XLA:CPU would copy all of a stacked array before the loop (docs/decisions.md).
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from moejax.ops.expert import Expert, feed_forward
from moejax.ops.routing import Routing
from moejax.ops.xla.permutation import combine, sort_by_expert

MAX_BLOCK = 128


def block_rows(rows: int, num_experts: int) -> int:
    """Rows per block for `rows` rows over `num_experts` experts: about one block for an expert of average load.

    Never one row (XLA:CPU's slowest product), and between 2 and 8 rows per expert twice the average, because a
    second block reads the weights a second time (measured in docs/decisions.md).
    """
    average = max(1, -(-rows // num_experts))
    if average == 1:
        return 2
    wanted = 2 * average if average <= 4 else average
    return min(MAX_BLOCK, 1 << (wanted - 1).bit_length())


def blocked(experts: Sequence[Expert], x: Float[Array, "T D"], routing: Routing) -> Float[Array, "T D"]:
    """Weighted sum of the chosen experts' results for every token; float32 result."""
    block = block_rows(routing.experts.size, len(experts))
    permutation = sort_by_expert(routing, len(experts))
    rows = jnp.pad(x[permutation.order // routing.experts.shape[1]], ((0, block), (0, 0)))
    results = jnp.zeros(rows.shape, jnp.float32)
    for index, expert in enumerate(experts):
        start, count = permutation.starts[index], permutation.counts[index]

        def one_block(i: Array, results: Array, expert: Expert = expert, start: Array = start) -> Array:
            # A last block that is not full computes rows of the next expert too, which that expert overwrites.
            first = start + i * block
            y = feed_forward(expert, lax.dynamic_slice_in_dim(rows, first, block))
            return lax.dynamic_update_slice_in_dim(results, y, first, axis=0)

        results = lax.fori_loop(0, (count + block - 1) // block, one_block, results)
    return combine(results[: routing.experts.size], permutation, routing)
