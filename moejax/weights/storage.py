"""How the numbers of a weight are kept, and how they are multiplied.

A weight's value is a small pytree of arrays, which passes through `jax.jit`, `shard_map` and loading as any other. In
place of arrays it can hold whatever belongs to each: shapes, shardings, partition specifications.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from moejax.runtime.platform import smallest_product
from sharding import LogicalAxes

StorageName = Literal["plain"]


class Stored(Protocol):
    """A weight's value, in some storage."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, whatever the arrays are."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        ...

    def per_array(self, make: Callable[[Any, LogicalAxes], Any]) -> Any:
        """The same pytree with `make(array, its logical axes)` in the place of each array."""
        ...

    def numbers(self) -> Array:
        """The numbers that are computed with, as one array of the weight's shape."""
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
    def declare(cls, shape: tuple[int, ...], axes: LogicalAxes, dtype: jax.typing.DTypeLike) -> "Plain":
        """Without numbers: the shape and dtype of the array."""
        return cls(array=jax.ShapeDtypeStruct(shape, dtype), axes=axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def nbytes(self) -> int:
        return self.array.size * self.array.dtype.itemsize

    def per_array(self, make: Callable[[Any, LogicalAxes], Any]) -> "Plain":
        return replace(self, array=make(self.array, self.axes))

    def numbers(self) -> Array:
        return self.array

    def product(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        return linear(x, self.array)


STORAGES: dict[StorageName, type[Plain]] = {"plain": Plain}


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
