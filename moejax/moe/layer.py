"""The mixture-of-experts layer: route, then let the chosen experts compute."""

import jax
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from moejax.config import ModelConfig
from moejax.layers import linear
from moejax.moe.experts import BACKENDS, BackendName, Experts
from moejax.params import fan_in_normal, param


class MoE(nnx.Module):
    """Router [E, D] and E experts. Dropless: every valid token reaches all of its A experts."""

    def __init__(self, config: ModelConfig, backend: BackendName, *, dtype: jax.typing.DTypeLike) -> None:
        self.experts_per_token = config.experts_per_token
        shape = (config.num_experts, config.embed_dim)
        self.router = param(shape, ("experts", "embed"), init=fan_in_normal(config.embed_dim), dtype=dtype)
        self.experts = Experts(config, backend, dtype=dtype)

    def __call__(
        self, x: Float[Array, "B T D"], valid: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Int[Array, "B T A"]]:
        """The layer's output (0 for tokens that are not `valid`) and the experts each token chose."""
        b, t, d = x.shape
        tokens = x.reshape(b * t, d)
        with jax.named_scope("router"):
            route = BACKENDS[self.experts.backend].route
            routing = route(linear(tokens, self.router[...]), valid.reshape(-1), self.experts_per_token)
        with jax.named_scope("experts"):
            y = self.experts(tokens, routing)
        return y.astype(x.dtype).reshape(b, t, d), routing.experts.reshape(b, t, -1)
