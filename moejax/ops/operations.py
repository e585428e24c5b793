"""The operations that the forward pass is made of, and the ways to compute them.

A model uses one set of them throughout, fixed when it is built: the one of its expert backend (`moe/experts.py`).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from moejax.model.cache import LayerCache
from moejax.model.rotary import Rotation, rotate_into_cache
from moejax.ops import native
from moejax.ops.xla.attend import attend
from moejax.runtime.platform import smallest_product


@dataclass(frozen=True, kw_only=True)
class Operations:
    """project: (x [*rows, I], weights [O_i, I], ...) -> x w^T for each weight, float32 [*rows, O_i].
    norm: (x [*rows, D], scale [D], eps) -> x / rms(x) * scale, in the dtype of x.
    rotate_into_cache: see `rotary.rotate_into_cache`.  attend: see `attend.attend`.
    reads_all: whether attend reads slots that no query sees.
    """

    project: Callable[..., tuple[Array, ...]]
    norm: Callable[..., Float[Array, "*rows D"]]
    rotate_into_cache: Callable[..., tuple[Float[Array, "B N T H"], LayerCache]]
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


def _norm(x: Float[Array, "*rows D"], scale: Float[Array, " D"], *, eps: float) -> Float[Array, "*rows D"]:
    x32 = x.astype(jnp.float32)
    inverse_rms = lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    scale = scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return (x32 * inverse_rms * scale).astype(x.dtype)


def _native_norm(x: Float[Array, "*rows D"], scale: Float[Array, " D"], *, eps: float) -> Float[Array, "*rows D"]:
    return native.rms_norm(x.reshape(-1, x.shape[-1]), scale, eps).reshape(x.shape)


def _native_rotate_into_cache(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    angles: Rotation,
    starts: Int[Array, " B"],
    cache: LayerCache,
) -> tuple[Float[Array, "B N T H"], LayerCache]:
    rotated, keys, values = native.rotate_into_cache(q, k, v, *angles, starts, cache.k, cache.v, cache.dtype)
    return rotated, dataclasses.replace(cache, k=keys, v=values)


XLA = Operations(project=_project, norm=_norm, rotate_into_cache=rotate_into_cache, attend=attend, reads_all=True)
NATIVE = Operations(
    project=_native_project,
    norm=_native_norm,
    rotate_into_cache=_native_rotate_into_cache,
    attend=native.attend,
    reads_all=False,
)
