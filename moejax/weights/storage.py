"""How the numbers of a weight are kept, and how they are multiplied.

A weight's value is a small pytree of arrays, which passes through `jax.jit`, `shard_map` and loading as any other. In
place of arrays it can hold whatever belongs to each: shapes, shardings, partition specifications.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from moejax._sharding import LogicalAxes
from moejax.runtime.bits import from_bits, stored_dtype, to_bits
from moejax.runtime.platform import smallest_product

# (out): puts a tensor, or a device's part of one, into host memory of its shape, rounded to its dtype.
Read = Callable[[np.ndarray], None]


class Stored(Protocol):
    """A weight's value, in some storage."""

    @classmethod
    def declare(
        cls, shape: tuple[int, ...], axes: LogicalAxes, parts: tuple[int, ...], dtype: jax.typing.DTypeLike
    ) -> Self:
        """Without numbers: shapes and dtypes of its arrays.

        parts: into how many each axis is divided on a mesh. A device's part of every array is that of its part of the
        weight.
        """
        ...

    @classmethod
    def of(cls, numbers: Float[Array, "*stack O I"]) -> Self:
        """Of numbers that a device holds whole."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, whatever the arrays are."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers that are computed with."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        ...

    def per_array(self, make: Callable[[Any, LogicalAxes], Any]) -> Any:
        """The same pytree with `make(array, its logical axes)` in the place of each array."""
        ...

    def fill(self, reads: Iterable[tuple[tuple[int, ...], Read]]) -> None:
        """Puts a tensor into each entry of the leading axes, () of a weight that is one. Its arrays are host memory."""
        ...

    def numbers(self) -> Array:
        """The numbers that are computed with, as one array of the weight's shape."""
        ...

    def take(self, ids: Int[Array, "*ids"]) -> Float[Array, "*ids I"]:
        """Rows of a weight [O, I]; an id that is none is the nearest that is."""
        ...

    def product(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        """x w^T with a float32 result, for a weight [O, I]."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Plain:
    """A weight as numbers of the dtype in which the model computes.

    array: of the weight's shape.  axes: what each of its axes is.
    """

    array: Any
    axes: LogicalAxes = field(metadata={"static": True})

    @classmethod
    def declare(
        cls, shape: tuple[int, ...], axes: LogicalAxes, parts: tuple[int, ...], dtype: jax.typing.DTypeLike
    ) -> "Plain":
        return cls(array=jax.ShapeDtypeStruct(shape, dtype), axes=axes)

    @classmethod
    def of(cls, numbers: Array) -> "Plain":
        return cls(array=numbers, axes=(None,) * numbers.ndim)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def nbytes(self) -> int:
        return self.array.size * self.array.dtype.itemsize

    def per_array(self, make: Callable[[Any, LogicalAxes], Any]) -> "Plain":
        return replace(self, array=make(self.array, self.axes))

    def fill(self, reads: Iterable[tuple[tuple[int, ...], Read]]) -> None:
        for entry, read in reads:
            read(self.array[(*entry, ...)])

    def numbers(self) -> Array:
        return self.array

    def take(self, ids: Int[Array, "*ids"]) -> Float[Array, "*ids I"]:
        return self.array.at[ids].get(mode="clip", wrap_negative_indices=False)

    def product(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        return linear(x, self.array)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Rows:
    """A table whose rows are taken, as bits (`runtime/bits.py`): of one in bfloat16, XLA:CPU would convert all."""

    array: Any
    axes: LogicalAxes = field(metadata={"static": True})
    of_dtype: str = field(metadata={"static": True})

    @classmethod
    def declare(
        cls, shape: tuple[int, ...], axes: LogicalAxes, parts: tuple[int, ...], dtype: jax.typing.DTypeLike
    ) -> "Rows":
        name = jnp.dtype(dtype).name
        return cls(array=jax.ShapeDtypeStruct(shape, stored_dtype(name)), axes=axes, of_dtype=name)

    @classmethod
    def of(cls, numbers: Array) -> "Rows":
        name = numbers.dtype.name
        return cls(array=to_bits(numbers, name), axes=(None,) * numbers.ndim, of_dtype=name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return jnp.dtype(self.of_dtype)

    @property
    def nbytes(self) -> int:
        return self.array.size * self.array.dtype.itemsize

    def per_array(self, make: Callable[[Any, LogicalAxes], Any]) -> "Rows":
        return replace(self, array=make(self.array, self.axes))

    def fill(self, reads: Iterable[tuple[tuple[int, ...], Read]]) -> None:
        for entry, read in reads:
            read(self.array.view(self.dtype)[(*entry, ...)])

    def numbers(self) -> Array:
        return from_bits(self.array, self.of_dtype)

    def take(self, ids: Int[Array, "*ids"]) -> Float[Array, "*ids I"]:
        return from_bits(self.array.at[ids].get(mode="clip", wrap_negative_indices=False), self.of_dtype)

    def product(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        return linear(x, self.numbers())


def linear(x: Float[Array, "*rows I"], w: Float[Array, "O I"]) -> Float[Array, "*rows O"]:
    """x w^T with a float32 result.

    Operands stay in their dtype and only the result is float32: the one form that XLA:CPU runs at speed for
    bfloat16 (docs/decisions.md), and the accumulator that a GPU keeps anyway.
    """
    rows = x.reshape(-1, x.shape[-1])
    count = rows.shape[0]
    rows = jnp.pad(rows, ((0, max(0, smallest_product(x.dtype) - count)), (0, 0)))
    y = lax.dot_general(
        rows, w, (((1,), (1,)), ((), ())), precision=precision_of(w.dtype), preferred_element_type=jnp.float32
    )[:count]
    return y.reshape(*x.shape[:-1], w.shape[0])


def precision_of(dtype: jax.typing.DTypeLike) -> lax.Precision:
    """The precision of products of this dtype: float32 means float32, not the TF32 that a GPU would take by default."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT
