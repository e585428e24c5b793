"""The operations that the forward pass is made of, and the ways to compute them.

A model uses one set of them throughout, fixed when it is built: the one of its expert backend (`moe/experts.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from moejax import native
from moejax.attend import attend
from moejax.platform import smallest_product


@dataclass(frozen=True, kw_only=True)
class Operations:
    """project: (x [*rows, I], weights [O_i, I], ...) -> x w^T for each weight, float32 [*rows, O_i].
    attend: see `attend.attend`.  reads_all: whether it reads slots that no query sees.
    """

    project: Callable[..., tuple[Array, ...]]
    attend: Callable[..., Float[Array, "B K G T H"]]
    reads_all: bool


def linear(x: Float[Array, "*rows I"], w: Float[Array, "O I"]) -> Float[Array, "*rows O"]:
    """x w^T with a float32 result.

    Operands stay in their dtype and only the result is float32: the one form that XLA:CPU runs at speed for
    bfloat16 (docs/decisions.md), and the accumulator that a GPU keeps anyway.
    """
    rows = x.reshape(-1, x.shape[-1])
    count = rows.shape[0]
    rows = jnp.pad(rows, ((0, max(0, smallest_product(x.dtype) - count)), (0, 0)))
    y = lax.dot_general(rows, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)[:count]
    return y.reshape(*x.shape[:-1], w.shape[0])


def _project(x: Float[Array, "*rows I"], *weights: Float[Array, "O I"]) -> tuple[Float[Array, "*rows O"], ...]:
    return tuple(linear(x, w) for w in weights)


def _native_project(x: Float[Array, "*rows I"], *weights: Float[Array, "O I"]) -> tuple[Float[Array, "*rows O"], ...]:
    results = native.linear(x.reshape(-1, x.shape[-1]), *weights)
    return tuple(y.reshape(*x.shape[:-1], -1) for y in results)


XLA = Operations(project=_project, attend=attend, reads_all=True)
NATIVE = Operations(project=_native_project, attend=native.attend, reads_all=False)
