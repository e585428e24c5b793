"""16-bit numbers as their bits.

XLA:CPU computes in float32 where it has no bfloat16 kernel, and for an update of a bfloat16 array that means converting
the *whole array* to float32 and back at every step (measured: 619 us against 0.3 us for one layer's keys,
docs/decisions.md), and for a row of a bfloat16 table the whole table once per call. Bits are moved, never converted.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax


def stored_dtype(dtype: str) -> jax.typing.DTypeLike:
    """What arrays of `dtype` are kept as."""
    return jnp.uint16 if jnp.dtype(dtype).itemsize == 2 else dtype


def to_bits(x: Array, dtype: str) -> Array:
    """Numbers, rounded to `dtype`, as they are kept."""
    x = x.astype(dtype)
    return x if stored_dtype(dtype) == dtype else lax.bitcast_convert_type(x, jnp.uint16)


def from_bits(x: Array, dtype: str) -> Array:
    """The numbers of what is kept."""
    return x if x.dtype == dtype else lax.bitcast_convert_type(x, jnp.dtype(dtype))
