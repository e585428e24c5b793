"""Rows into expert-sorted places and back: `reference.permute` and `reference.combine`."""

import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jaxtyping import Float, Int

from moejax.ops.triton.blocks import row_block
from moejax.ops.triton.launch import Out, launch, load, store, within


def permute(
    x: Float[Array, "T X"], places: Int[Array, "T A"], num_places: int, *, interpret: bool = False
) -> Float[Array, "P X"]:
    """`reference.permute`; rows that no place names are left as the memory was. Programs: tokens x pieces of a row."""
    (t, width), a = x.shape, places.shape[1]
    block = row_block(width)
    if t == 0 or num_places == 0:
        return jnp.zeros((num_places, width), x.dtype)

    def copy_row(x_ref, places_ref, rows_ref):
        token = pl.program_id(0)
        columns = pl.program_id(1) * block.width + jnp.arange(block.width)
        mask = within(columns, width, block.width)
        row = load(x_ref, (token, columns), mask)
        for choice in range(a):
            place = places_ref[token, choice]
            named = jnp.broadcast_to(place < num_places, (block.width,))
            store(rows_ref, (place, columns), row, named if mask is None else named & mask)

    (rows,) = launch(
        copy_row,
        "permute",
        (t, pl.cdiv(width, block.width)),
        (Out((num_places, width), x.dtype),),
        (x, places),
        warps=block.warps,
        interpret=interpret,
    )
    return rows


def combine(
    rows: Float[Array, "S P X"], places: Int[Array, "T A"], weights: Float[Array, "T A"], *, interpret: bool = False
) -> Float[Array, "T X"]:
    """`reference.combine`: parts of a row first, then the rows of a token. Programs: tokens x pieces of a row."""
    (parts, num_places, width), (t, a) = rows.shape, places.shape
    block = row_block(width)
    if t == 0 or num_places == 0:
        return jnp.zeros((t, width), jnp.float32)

    def weighted_sum(rows_ref, places_ref, weights_ref, y_ref):
        token = pl.program_id(0)
        columns = pl.program_id(1) * block.width + jnp.arange(block.width)
        mask = within(columns, width, block.width)
        total = jnp.zeros((block.width,), jnp.float32)
        for choice in range(a):
            place = places_ref[token, choice]
            named = jnp.broadcast_to(place < num_places, (block.width,))
            read = named if mask is None else named & mask
            row = jnp.zeros((block.width,), jnp.float32)
            for part in range(parts):
                row += load(rows_ref, (part, place, columns), read).astype(jnp.float32)
            total += weights_ref[token, choice] * row
        store(y_ref, (token, columns), total, mask)

    (y,) = launch(
        weighted_sum,
        "combine",
        (t, pl.cdiv(width, block.width)),
        (Out((t, width), jnp.float32),),
        (rows, places, weights),
        warps=block.warps,
        interpret=interpret,
    )
    return y
