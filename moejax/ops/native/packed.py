"""Weights in strips, as the kernels multiply them: the storage of every matrix of a model that the kernels compute."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from moejax._sharding import LogicalAxes
from moejax.ops.native.library import pack_rows
from moejax.runtime.bits import from_bits, stored_dtype, to_bits
from moejax.weights import strips
from moejax.weights.storage import Read, linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Packed:
    """A matrix, or a stack of them, in strips (`weights/strips.py`).

    On a mesh every device has strips of its own part, and the whole array is these parts one after the other.

    array: [*stack, S, K, W, N], as bits (`runtime/bits.py`).  of_dtype: what these are.
    axes: what each axis of the matrix is.  outputs, inputs: of the part that one device holds.
    """

    array: Any
    axes: LogicalAxes = field(metadata={"static": True})
    outputs: int = field(metadata={"static": True})
    inputs: int = field(metadata={"static": True})
    of_dtype: str = field(metadata={"static": True})

    @classmethod
    def declare(
        cls, shape: tuple[int, ...], axes: LogicalAxes, parts: tuple[int, ...], dtype: jax.typing.DTypeLike
    ) -> "Packed":
        outputs, inputs = (size // part for size, part in zip(shape[-2:], parts[-2:], strict=True))
        count, units, *inside = strips.packed_shape(outputs, inputs, dtype)
        whole = (*shape[:-2], parts[-2] * count, parts[-1] * units, *inside)
        name = jnp.dtype(dtype).name
        array = jax.ShapeDtypeStruct(whole, stored_dtype(name))
        return cls(array=array, axes=axes, outputs=outputs, inputs=inputs, of_dtype=name)

    @classmethod
    def of(cls, numbers: Float[Array, "*stack O I"]) -> "Packed":
        """Of matrices that one device holds whole."""
        (outputs, inputs), name = numbers.shape[-2:], numbers.dtype.name
        array = to_bits(strips.pack(numbers), name)
        return cls(array=array, axes=(None,) * numbers.ndim, outputs=outputs, inputs=inputs, of_dtype=name)

    @property
    def shape(self) -> tuple[int, ...]:
        outputs, inputs = self._parts()
        return *self.array.shape[:-4], outputs * self.outputs, inputs * self.inputs

    @property
    def dtype(self) -> np.dtype[Any]:
        return jnp.dtype(self.of_dtype)

    @property
    def nbytes(self) -> int:
        return self.array.size * self.array.dtype.itemsize

    def per_array(self, make: Callable[[Any, LogicalAxes], Any]) -> "Packed":
        return replace(self, array=make(self.array, strips.packed_axes(self.axes)))

    def fill(self, reads: Iterable[tuple[tuple[int, ...], Read]]) -> None:
        rows = np.empty((self.outputs, self.inputs), self.dtype)
        for entry, read in reads:
            read(rows)
            pack_rows(rows, self.array[entry])

    def numbers(self) -> Array:
        outputs, inputs = self._parts()
        *stack, count, units, width, n = self.array.shape
        parts = self.array.reshape(*stack, outputs, count // outputs, inputs, units // inputs, width, n)
        parts = jnp.moveaxis(parts, -4, -5)  # [*stack, outputs, inputs, S, K, W, N]
        numbers = strips.unpack(from_bits(parts, self.of_dtype), self.outputs, self.inputs)
        return jnp.swapaxes(numbers, -3, -2).reshape(self.shape)

    def take(self, ids: Int[Array, "*ids"]) -> Float[Array, "*ids I"]:
        width = self.array.shape[-2]
        ids = jnp.clip(ids, 0, self.outputs - 1)
        rows = self.array[ids // width, :, ids % width]  # [*ids, K, N]
        return from_bits(rows.reshape(*ids.shape, -1)[..., : self.inputs], self.of_dtype)

    def product(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        return linear(x, self.numbers())

    def _parts(self) -> tuple[int, int]:
        """How many devices' parts the array has along outputs and inputs: 1 and 1 inside `shard_map`."""
        count, units = strips.packed_shape(self.outputs, self.inputs, self.dtype)[:2]
        return self.array.shape[-4] // count, self.array.shape[-3] // units
