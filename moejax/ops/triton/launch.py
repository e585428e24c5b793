"""The one way in which the kernels of this folder reach Pallas, and the small pieces they share.

Traps of Pallas' Triton lowering: `jnp.where` between two Python numbers with a scalar condition selects between
booleans, a wrong value without a word (test_lowering.py looks for it); `jnp.any` and `jnp.all` do
not lower; arrays have a power-of-two size; float32 products are TF32 unless the precision says otherwise.
Interpretation wants `pl.program_id` outside of conditions, and check_vma=False of a `jax.shard_map` around it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton


class Out(NamedTuple):
    """An output of a kernel."""

    shape: tuple[int, ...]
    dtype: jax.typing.DTypeLike


def launch(
    kernel: Callable[..., None],
    name: str,
    grid: tuple[int, ...],
    outputs: tuple[Out, ...],
    operands: tuple[Array, ...],
    *,
    warps: int,
    stages: int = 1,
    in_place: Mapping[int, int] = MappingProxyType({}),
    interpret: bool,
) -> tuple[Array, ...]:
    """Runs `kernel(*operand references, *output references)` once per point of the grid.

    References are to whole arrays in device memory; a kernel computes its own addresses.

    Args:
        in_place: operands, by number, that outputs are made of: what is not written stays as it was.
    """
    whole = pl.BlockSpec(memory_space=pl.ANY)
    varying = _varying(operands)
    return pl.pallas_call(
        kernel,
        name=name,
        grid=grid,
        out_shape=tuple(jax.ShapeDtypeStruct(out.shape, out.dtype, manual_axis_type=varying) for out in outputs),
        in_specs=[whole] * len(operands),
        out_specs=(whole,) * len(outputs),
        input_output_aliases=dict(in_place),
        compiler_params=pallas_triton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
    )(*operands)


def load(ref: Any, index: tuple[Any, ...], mask: Array | None = None, *, other: float = 0, once: bool = False) -> Array:
    """`ref[index]`, `other` where the mask is False. `once`: data that nobody reads again, first to leave the cache."""
    return pallas_triton.load(
        ref.at[index],
        mask=mask,
        other=None if mask is None else other,
        eviction_policy="evict_first" if once else None,
    )


def store(ref: Any, index: tuple[Any, ...], value: Array, mask: Array | None = None) -> None:
    """`ref[index] = value` where the mask is True."""
    pallas_triton.store(ref.at[index], value, mask=mask)


def dot(a: Array, b: Array) -> Array:
    """a b^T in float32; both operands have the contracted axis last, as the weights do."""
    return lax.dot_general(
        a, b, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    return x / (1.0 + jnp.exp(-x))


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def within(index: Array, size: int, block: int) -> Array | None:
    """The mask `index < size`, or None where a whole number of blocks fits."""
    return None if size % block == 0 else index < size


def both(a: Array | None, b: Array | None, shape: tuple[int, int]) -> Array | None:
    """The mask [len(a), len(b)] of rows in `a` and columns in `b`; None is all of them."""
    if a is None:
        return None if b is None else jnp.broadcast_to(b[None, :], shape)
    rows = jnp.broadcast_to(a[:, None], shape)
    return rows if b is None else rows & b[None, :]


def _varying(operands: tuple[Array, ...]) -> jax.sharding.ManualAxisType:
    """Inside `shard_map`, what the outputs vary over: all mesh axes that some operand varies over."""
    types = (jax.typeof(operand).manual_axis_type for operand in operands)
    return jax.sharding.ManualAxisType(varying=frozenset(axis for one in types for axis in one.varying))
