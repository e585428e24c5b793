"""The operations of a model by the compiled kernels: values (`packed.py`) and caches as the model has them."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from moejax.ops.expert import Expert
from moejax.ops.native import ops
from moejax.ops.native.packed import Packed
from moejax.ops.routing import Routing


def project(
    x: Float[Array, "*rows I"], *weights: Packed, dtype: jax.typing.DTypeLike = jnp.float32
) -> tuple[Float[Array, "*rows O"], ...]:
    """`reference.project`; all weights in one call."""
    results = ops.linear(x.reshape(-1, x.shape[-1]), *weights)
    return tuple(y.reshape(*x.shape[:-1], -1).astype(dtype) for y in results)


def norm(x: Float[Array, "*rows D"], scale: Float[Array, " D"], *, eps: float) -> Float[Array, "*rows D"]:
    """`reference.norm`."""
    return ops.rms_norm(x.reshape(-1, x.shape[-1]), scale, eps).reshape(x.shape)


def experts(experts: Expert, x: Float[Array, "T D"], routing: Routing) -> Float[Array, "T D"]:
    """`reference.expert_ffn`: one call reads each chosen expert's weights once, however many rows it has."""
    return ops.expert_ffn(*experts, x, routing.experts, routing.weights)
