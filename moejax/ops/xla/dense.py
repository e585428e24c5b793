"""Expert backend `dense`: every expert on every token. The specification of the others."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from moejax.ops.expert import Expert
from moejax.ops.routing import Routing
from moejax.weights.storage import linear, precision_of


def dense(experts: Expert, x: Float[Array, "T D"], routing: Routing) -> Float[Array, "T D"]:
    """Weighted sum of the chosen experts' results for every token, computing all of them; float32 result."""
    gate, up, down = (value.numbers() for value in experts)
    e, f, d = gate.shape
    t = x.shape[0]
    gated = linear(x, gate.reshape(e * f, d))
    upped = linear(x, up.reshape(e * f, d))
    hidden = (jax.nn.silu(gated) * upped).astype(x.dtype).reshape(t, e, f)
    results = jnp.einsum(
        "tef,edf->ted", hidden, down, precision=precision_of(x.dtype), preferred_element_type=jnp.float32
    )
    weights = jnp.sum(jax.nn.one_hot(routing.experts, e) * routing.weights[..., None], axis=1)  # T E
    # An expert that was not chosen may overflow a narrow dtype: 0 times infinity must not reach the sum.
    return jnp.sum(jnp.where(weights[..., None] > 0, results * weights[..., None], 0.0), axis=1)
