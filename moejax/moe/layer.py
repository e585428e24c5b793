"""The mixture-of-experts layer: route, then let the chosen experts compute, wherever they are."""

from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from moejax.families.config import ModelConfig
from moejax.model.params import fan_in_normal, param
from moejax.moe.dispatch import Dispatched, ExpertGroup, dispatch_body
from moejax.moe.experts import BACKENDS, BackendName, Experts
from moejax.moe.parallel import Parallel
from moejax.ops.routing import Routing
from moejax.weights.declarations import router_weights


class Routed(NamedTuple):
    """Where the tokens of one layer went; of the whole model, with an axis L before the last.

    experts: that each token chose [B, T, A], E where a token is padding.
    rows: that each expert computed [d, E], for each of the d groups of devices that together hold all experts.
    """

    experts: Int[Array, "B T *L A"]
    rows: Int[Array, "d *L E"]


class MoE(nnx.Module):
    """Router [E, D] and E experts. Dropless: every valid token reaches all of its A experts."""

    def __init__(
        self, config: ModelConfig, backend: BackendName, parallel: Parallel, *, dtype: jax.typing.DTypeLike
    ) -> None:
        self.experts_per_token, self.num_experts = config.experts_per_token, config.num_experts
        self.parallel = parallel
        self.router = param(*router_weights(config), init=fan_in_normal(config.embed_dim), dtype=dtype)
        self.experts = Experts(config, backend, parallel.rules, dtype=dtype)

    def __call__(self, x: Float[Array, "B T D"], valid: Bool[Array, "B T"]) -> tuple[Float[Array, "B T D"], Routed]:
        """The layer's output (0 for tokens that are not `valid`), and where tokens went."""
        parallel, dispatch = self.parallel, dispatch_body(self.parallel.dispatch)
        backend = BACKENDS[self.experts.backend]

        def body(x: Float[Array, "Bl T D"], valid: Bool[Array, "Bg T"], router: Array, experts: Any) -> Any:
            """Bl rows of this device, Bg of its group; its part of each expert."""

            def choose(tokens: Array, valid: Array) -> Routing:
                with jax.named_scope("router"):
                    (logits,) = backend.operations.project(tokens, router)
                    return backend.route(logits, valid, self.experts_per_token)

            def compute(tokens: Array, local: Routing) -> Array:
                with jax.named_scope("experts"):
                    return self.experts.apply(experts, tokens, local)

            group = ExpertGroup(
                expert=parallel.axes("experts"),
                tensor=parallel.axes("mlp"),
                peers=parallel.rules.parts("experts"),
                local_experts=self.num_experts // parallel.rules.parts("experts"),
                route=choose,
                compute=compute,
            )
            b, t, d = x.shape
            result: Dispatched = dispatch(x.reshape(b * t, d), valid.reshape(-1), group)
            return result.y.reshape(x.shape), result.experts.reshape(b, t, -1), result.rows[None]

        rows = parallel.spec("batch")
        in_specs = (rows, parallel.spec("groups"), parallel.spec(), self.experts.specs(parallel))
        out_specs = (rows, rows, parallel.spec("groups", "experts"))
        y, experts, counts = parallel.map(body, in_specs, out_specs)(x, valid, self.router[...], self.experts.weights())
        return y, Routed(experts, counts)
