"""Backend `dense`: every expert on every token. The specification of the others."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from moejax.ops.expert import Expert
from moejax.ops.operations import linear
from moejax.ops.routing import Routing


def dense(experts: Expert, x: Float[Array, "T D"], routing: Routing) -> Float[Array, "T D"]:
    """Weighted sum of the chosen experts' results for every token, computing all of them; float32 result."""
    e, f, d = experts.gate.shape
    t = x.shape[0]
    gate = linear(x, experts.gate.reshape(e * f, d))
    up = linear(x, experts.up.reshape(e * f, d))
    hidden = (jax.nn.silu(gate) * up).astype(x.dtype).reshape(t, e, f)
    results = jnp.einsum("tef,edf->ted", hidden, experts.down, preferred_element_type=jnp.float32)
    weights = jnp.sum(jax.nn.one_hot(routing.experts, e) * routing.weights[..., None], axis=1)  # T E
    # An expert that was not chosen may overflow a narrow dtype: 0 times infinity must not reach the sum.
    return jnp.sum(jnp.where(weights[..., None] > 0, results * weights[..., None], 0.0), axis=1)
