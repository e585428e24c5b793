"""Rows into expert-sorted places and back: `reference.permute` and `reference.combine`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
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
    rows: Float[Array, "S P X"],
    places: Int[Array, "T A"],
    weights: Float[Array, "T A"],
    dtype: jax.typing.DTypeLike = jnp.float32,
    *,
    interpret: bool = False,
) -> Float[Array, "T X"]:
    """`reference.combine`: parts of a row first, then the rows of a token. Programs: tokens x pieces of a row."""

    def find(places_ref: Any, token: Array, choice: int) -> tuple[Array, Array]:
        place = places_ref[token, choice]
        return place, place < rows.shape[1]

    return _combine(rows, places, weights, dtype, find, interpret)


def combine_in_order(
    rows: Float[Array, "S R X"],
    experts: Int[Array, "T A"],
    num_experts: int,
    weights: Float[Array, "T A"],
    dtype: jax.typing.DTypeLike = jnp.float32,
    *,
    interpret: bool = False,
) -> Float[Array, "T X"]:
    """`combine` of rows that lie in the order of (token, choice); a row of expert `num_experts`, none, counts as 0."""

    def find(experts_ref: Any, token: Array, choice: int) -> tuple[Array, Array]:
        return token * experts.shape[1] + choice, experts_ref[token, choice] < num_experts

    return _combine(rows, experts, weights, dtype, find, interpret)


def _combine(
    rows: Array,
    ids: Array,
    weights: Array,
    dtype: jax.typing.DTypeLike,
    find: Callable[[Any, Array, int], tuple[Array, Array]],
    interpret: bool,
) -> Array:
    """find: (ids, token, choice) -> the place of that row, and whether it has one."""
    (parts, num_places, width), (t, a) = rows.shape, ids.shape
    block = row_block(width)
    if t == 0 or num_places == 0:
        return jnp.zeros((t, width), dtype)

    def weighted_sum(rows_ref, ids_ref, weights_ref, y_ref):
        token = pl.program_id(0)
        columns = pl.program_id(1) * block.width + jnp.arange(block.width)
        mask = within(columns, width, block.width)
        total = jnp.zeros((block.width,), jnp.float32)
        for choice in range(a):
            place, there = find(ids_ref, token, choice)
            named = jnp.broadcast_to(there, (block.width,))
            read = named if mask is None else named & mask

            def add_part(part, row, place=place, read=read):
                return row + load(rows_ref, (part, place, columns), read).astype(jnp.float32)

            row = lax.fori_loop(0, parts, add_part, jnp.zeros((block.width,), jnp.float32))
            total += weights_ref[token, choice] * row
        store(y_ref, (token, columns), total.astype(y_ref.dtype), mask)

    (y,) = launch(
        weighted_sum,
        "combine",
        (t, pl.cdiv(width, block.width)),
        (Out((t, width), dtype),),
        (rows, ids, weights),
        warps=block.warps,
        interpret=interpret,
    )
    return y
