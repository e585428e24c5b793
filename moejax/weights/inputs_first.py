"""Stacks of matrices with their inputs first, as XLA's grouped products of a TPU multiply them.

Given outputs first, XLA copies every expert of a layer at each call; `scripts.compile_for` shows it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from moejax._sharding import LogicalAxes
from moejax.weights.storage import Read, linear

STACK = 3  # axes of experts [P, O, I]; a matrix alone stays as it is


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class InputsFirst:
    """A matrix [O, I], or a stack of them kept as [P, I, O].

    axes: what each axis of the weight is, outputs before inputs.
    """

    array: Any
    axes: LogicalAxes = field(metadata={"static": True})

    @classmethod
    def declare(
        cls, shape: tuple[int, ...], axes: LogicalAxes, parts: tuple[int, ...], dtype: jax.typing.DTypeLike
    ) -> "InputsFirst":
        return cls(array=jax.ShapeDtypeStruct(_turned(shape), dtype), axes=axes)

    @classmethod
    def of(cls, numbers: Float[Array, "*stack O I"]) -> "InputsFirst":
        array = numbers.swapaxes(1, 2) if numbers.ndim == STACK else numbers
        return cls(array=array, axes=(None,) * numbers.ndim)

    @property
    def shape(self) -> tuple[int, ...]:
        return _turned(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def nbytes(self) -> int:
        return self.array.size * self.array.dtype.itemsize

    def per_array(self, make: Callable[[Any, LogicalAxes], Any]) -> "InputsFirst":
        return replace(self, array=make(self.array, _turned(self.axes)))

    def fill(self, reads: Iterable[tuple[tuple[int, ...], Read]]) -> None:
        for entry, read in reads:
            if self.array.ndim < STACK:
                read(self.array[(*entry, ...)])
                continue
            inputs, outputs = self.array.shape[1:]
            rows = np.empty((outputs, inputs), self.array.dtype)
            read(rows)
            self.array[entry] = rows.T

    def numbers(self) -> Array:
        return self.array.swapaxes(1, 2) if self.array.ndim == STACK else self.array

    def take(self, ids: Int[Array, "*ids"]) -> Float[Array, "*ids I"]:
        return self.array.at[ids].get(mode="clip", wrap_negative_indices=False)

    def product(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        return linear(x, self.array)


def inputs_first(value: Any) -> Float[Array, "P I O"]:
    """A stack with its inputs first, in whatever storage."""
    return value.array if isinstance(value, InputsFirst) else jnp.swapaxes(value.numbers(), 1, 2)


def _turned(of_axes: tuple[Any, ...]) -> tuple[Any, ...]:
    """What is said of each axis of the weight, for its array; and of the array, for its weight."""
    return (of_axes[0], of_axes[2], of_axes[1]) if len(of_axes) == STACK else of_axes
