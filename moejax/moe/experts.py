"""Expert weights, and the table of ways to compute them.

A backend is a weight layout and a function over weights so laid out. Adding one: a file beside this one, a row in
`BACKENDS`, its name in `BackendName`.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from moejax.config import ModelConfig
from moejax.moe.blocked import blocked
from moejax.moe.dense import dense
from moejax.moe.pallas import cannot_run, pallas, pallas_route
from moejax.moe.ragged import ragged
from moejax.moe.router import Routing, route
from moejax.moe.weights import Expert
from moejax.params import fan_in_normal, param

_logger = logging.getLogger(__name__)

WeightLayout = Literal["per_expert", "stacked"]
BackendName = Literal["dense", "blocked", "ragged", "pallas"]


@dataclass(frozen=True, kw_only=True)
class ExpertBackend:
    """How a device computes its experts.

    layout: `per_expert`, three arrays for each expert, or `stacked`, three arrays with a leading axis E.
    apply: (experts, x [T, D], routing) -> float32 [T, D]; experts is a sequence of `Expert`, or one stacked `Expert`.
    route: (logits [T, E], valid [T], experts per token) -> Routing.
    """

    layout: WeightLayout
    apply: Callable[[Any, Float[Array, "T D"], Routing], Float[Array, "T D"]]
    route: Callable[[Float[Array, "T E"], Bool[Array, " T"], int], Routing] = route


BACKENDS: dict[BackendName, ExpertBackend] = {
    "dense": ExpertBackend(layout="stacked", apply=dense),
    "blocked": ExpertBackend(layout="per_expert", apply=blocked),
    "ragged": ExpertBackend(layout="stacked", apply=ragged),
    "pallas": ExpertBackend(layout="stacked", apply=pallas, route=pallas_route),
}


def resolve_backend(name: str, platform: str) -> BackendName:
    """The backend called `name`; `auto` is the one for `platform` ("cpu", "gpu", "tpu").

    On CPU `blocked` wins at every row count (docs/decisions.md), on a GPU `pallas` reads only chosen experts. Where its
    kernels do not run, a loop whose trip count depends on the routing would wait for the host at every block, so `auto`
    takes `dense` there and, on a GPU, says so.

    Raises:
        ValueError: for an unknown name, or `pallas` where it cannot run.
    """
    if name == "auto":
        if platform != "gpu":
            return "blocked" if platform == "cpu" else "dense"
        if reason := cannot_run():
            _logger.warning("expert backend 'auto' takes 'dense', which computes every expert: %s", reason)
            return "dense"
        return "pallas"
    if name not in BACKENDS:
        raise ValueError(f"unknown expert backend {name!r}; the known ones are auto, {', '.join(BACKENDS)}")
    if name == "pallas" and (reason := cannot_run()):
        raise ValueError(f"expert backend 'pallas': {reason}; use expert_backend='auto'")
    return name


class Experts(nnx.Module):
    """E expert feed-forward networks, laid out as `backend` wants them."""

    def __init__(self, config: ModelConfig, backend: BackendName, *, dtype: jax.typing.DTypeLike) -> None:
        self.backend: BackendName = backend
        if BACKENDS[backend].layout == "stacked":
            self.stacked = ExpertParams(config, (config.num_experts,), dtype=dtype)
        else:
            self.each = nnx.List([ExpertParams(config, (), dtype=dtype) for _ in range(config.num_experts)])

    def __call__(self, x: Float[Array, "T D"], routing: Routing) -> Float[Array, "T D"]:
        backend = BACKENDS[self.backend]
        if backend.layout == "stacked":
            return backend.apply(self.stacked.weights(), x, routing)
        return backend.apply([expert.weights() for expert in self.each], x, routing)


class ExpertParams(nnx.Module):
    """The parameters of one expert (`stack` is empty) or of a stack of them."""

    def __init__(self, config: ModelConfig, stack: tuple[int, ...], *, dtype: jax.typing.DTypeLike) -> None:
        d, f = config.embed_dim, config.expert_dim
        axes = ("experts",) if stack else ()
        self.gate = param((*stack, f, d), (*axes, "mlp", "embed"), init=fan_in_normal(d), dtype=dtype)
        self.up = param((*stack, f, d), (*axes, "mlp", "embed"), init=fan_in_normal(d), dtype=dtype)
        self.down = param((*stack, d, f), (*axes, "embed", "mlp"), init=fan_in_normal(f), dtype=dtype)

    def weights(self) -> Expert:
        return Expert(self.gate[...], self.up[...], self.down[...])
