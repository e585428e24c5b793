"""The mixture-of-experts layer: route, then let the chosen experts compute, wherever they are."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from moejax._sharding import Rules
from moejax.families.config import ModelConfig
from moejax.moe.dispatch import Dispatched, ExpertGroup, dispatch_body
from moejax.moe.parallel import Parallel
from moejax.moe.split import DISPATCHES
from moejax.ops.expert import Expert
from moejax.ops.places import place
from moejax.ops.routing import Routing
from moejax.ops.table import Ops
from moejax.weights.params import param, value
from moejax.weights.weight import Weight


class Routed(NamedTuple):
    """Where the tokens of one layer went; of the whole model, with an axis L of its MoE layers before the last.

    experts: that each token chose [B, T, A], E where a token is padding.
    rows: that each place computed [d, P], for each of the d groups of devices that together hold all experts.
    """

    experts: Int[Array, "B T *L A"]
    rows: Int[Array, "d *L P"]


class MoE(nnx.Module):
    """Router [E, D] and E experts in P places. Dropless: every valid token reaches all of its A experts."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Weight],
        ops: Ops,
        parallel: Parallel,
        *,
        places: int,
        dtype: jax.typing.DTypeLike,
    ) -> None:
        self.policy, self.num_experts, self.places = config.router, config.num_experts, places
        self.parallel, self.ops = parallel, ops
        self.router = param(weights["router"], parallel.rules, dtype=dtype, storage=ops.storage)
        self.experts = ExpertParams(
            {name: weights[f"experts.{name}"] for name in Expert._fields}, ops, places, parallel.rules, dtype=dtype
        )

    def __call__(
        self, x: Float[Array, "B T D"], valid: Bool[Array, "B T"], table: Int[Array, "3 P"]
    ) -> tuple[Float[Array, "B T D"], Routed]:
        """The layer's output (0 for tokens that are not `valid`), and where tokens went.

        table: which expert each place holds (`PhysicalExperts.tables`), whole on every device.
        """
        parallel, dispatch = self.parallel, dispatch_body(self.parallel.dispatch)
        unreduced = sum((parallel.axes(logical) for logical in DISPATCHES[parallel.dispatch].unreduced), ())
        peers, experts_axes = parallel.rules.parts("experts"), parallel.axes("experts")
        local_places = self.places // peers

        def body(
            x: Float[Array, "Bl T D"], valid: Bool[Array, "Bg T"], router: Any, experts: Expert, table: Array
        ) -> Any:
            """Bl sequences of this device, Bg of its group; its part of each expert."""

            def choose(tokens: Array, valid: Array) -> Routing:
                with jax.named_scope("router"):
                    (logits,) = self.ops.project(tokens, router)
                    return self.ops.route(logits, valid, self.policy)

            def choose_here(tokens: Array, valid: Array) -> tuple[Array, Routing]:
                with jax.named_scope("router"):
                    (logits,) = self.ops.project(tokens, router)
                    first = lax.axis_index(experts_axes) * local_places if experts_axes else None
                    return self.ops.route_here(logits, valid, self.policy, table, first, local_places)

            def compute(tokens: Array, local: Routing) -> Array:
                with jax.named_scope("experts"):
                    return self.ops.experts(experts, tokens, local)

            group = ExpertGroup(
                expert=experts_axes,
                tensor=parallel.axes("mlp"),
                peers=peers,
                local_places=local_places,
                route=choose,
                route_here=choose_here,
                place=lambda routing: place(routing, table, self.num_experts),
                compute=compute,
            )

            def some(tokens: Array, valid: Array) -> tuple[Array, Array, Array]:
                result: Dispatched = dispatch(tokens, valid.reshape(-1), group)
                # A shared expert would be added here: the parts of all that the layer computes are reduced together.
                return lax.psum(result.partial.astype(x.dtype), unreduced), result.experts, result.rows[None]

            b, t, d = x.shape
            # The group's tokens lie in the order of the devices that have them.
            by_device = valid.reshape(-1, b * t)
            y, chosen, rows = parallel.in_micro_batches(some, (x.reshape(b * t, d), 0), (by_device, 1))
            return (
                y.reshape(x.shape),
                chosen.reshape(b, t, -1),
                rows if len(rows) == 1 else rows.sum(axis=0, keepdims=True),
            )

        rows, router, experts = parallel.spec("batch"), value(self.router), self.experts.values()
        in_specs = (
            rows,
            parallel.spec("groups"),
            parallel.specs(router),
            parallel.specs(experts),
            parallel.spec(),
        )
        out_specs = (rows, rows, parallel.spec("groups", "experts"))
        y, chosen, counts = parallel.map(body, in_specs, out_specs)(x, valid, router, experts, table)
        return y, Routed(chosen, counts)


class ExpertParams(nnx.Module):
    """The parameters of a layer's experts: gate, up and down of all of them, in the layout of the expert backend."""

    def __init__(
        self, weights: Mapping[str, Weight], ops: Ops, places: int, rules: Rules, *, dtype: jax.typing.DTypeLike
    ) -> None:
        self.gate, self.up, self.down = (
            param(weights[name], rules, dtype=dtype, storage=ops.storage, layout=ops.layout, places=places)
            for name in Expert._fields
        )

    def values(self) -> Expert:
        """The values, for `Ops.experts` on each device."""
        return Expert(value(self.gate), value(self.up), value(self.down))
