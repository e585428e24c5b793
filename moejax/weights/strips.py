"""Strips: a matrix in the order in which CPU kernels multiply it (`ops/native/strips.h` is the same in C++).

A matrix of O outputs and I inputs is [O / W, I / N, W, N]: strips of W = 64 outputs (O rounded up to 16, where less),
in which N inputs of an output lie side by side. What is missing of the last strip and of the last N inputs is 0. One
element of a row (N of them), broadcast, multiplies a vector of outputs, and weights are read as they lie.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Shaped

from moejax._sharding import LogicalAxes

STRIP, PART = 64, 16  # outputs of a strip, and what smaller ones are a multiple of


def together(dtype: jax.typing.DTypeLike) -> int:
    """Inputs of an output that lie side by side: bfloat16 is multiplied in pairs."""
    return 2 if jnp.dtype(dtype) == jnp.bfloat16 else 1


def strip_width(outputs: int) -> int:
    """Outputs of a strip of a matrix that has so many."""
    return min(STRIP, -(-outputs // PART) * PART)


def packed_shape(outputs: int, inputs: int, dtype: jax.typing.DTypeLike) -> tuple[int, int, int, int]:
    """[strips, inputs / N, W, N]."""
    width, n = strip_width(outputs), together(dtype)
    return -(-outputs // width), -(-inputs // n), width, n


def packed_axes(axes: LogicalAxes) -> LogicalAxes:
    """What the axes of the packed array are, of a matrix with these."""
    return (*axes, None, None)


def pack(numbers: Shaped[Array, "*stack O I"]) -> Shaped[Array, "*stack S K W N"]:
    """A matrix, or a stack of them, in strips."""
    outputs, inputs = numbers.shape[-2:]
    strips, units, width, n = packed_shape(outputs, inputs, numbers.dtype)
    stack: Any = [(0, 0)] * (numbers.ndim - 2)
    whole = jnp.pad(numbers, (*stack, (0, strips * width - outputs), (0, units * n - inputs)))
    return jnp.swapaxes(whole.reshape(*numbers.shape[:-2], strips, width, units, n), -3, -2)


def unpack(packed: Shaped[Array, "*stack S K W N"], outputs: int, inputs: int) -> Shaped[Array, "*stack O I"]:
    """The matrices [outputs, inputs] of what `pack` made of them."""
    strips, units, width, n = packed.shape[-4:]
    whole = jnp.swapaxes(packed, -3, -2).reshape(*packed.shape[:-4], strips * width, units * n)
    return whole[..., :outputs, :inputs]
