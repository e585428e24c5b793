"""What the device can do. The one place where the code asks."""

import jax
import jax.numpy as jnp


def smallest_product(dtype: jax.typing.DTypeLike) -> int:
    """Fewest rows of a matrix product worth computing.

    XLA:CPU's library takes a 16-bit product of two rows or more; one of a single row falls to a loop ten times slower
    (docs/decisions.md), so one row is computed as two.
    """
    return 2 if jax.default_backend() == "cpu" and jnp.dtype(dtype).itemsize == 2 else 1
