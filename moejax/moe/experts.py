"""Expert weights, and the table of ways to compute them.

A backend is a weight layout and a function over weights so laid out. Adding one: a file beside this one, a row in
`BACKENDS`, its name in `BackendName`.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from moejax.families.config import ModelConfig
from moejax.model.params import fan_in_normal, param
from moejax.moe.parallel import Parallel
from moejax.ops import native as native_kernels
from moejax.ops.expert import Expert
from moejax.ops.native_experts import native, native_route
from moejax.ops.operations import NATIVE, XLA, Operations
from moejax.ops.pallas import cannot_run as pallas_cannot_run
from moejax.ops.pallas import pallas, pallas_route, tokamax
from moejax.ops.routing import Routing, route
from moejax.ops.xla.blocked import blocked
from moejax.ops.xla.dense import dense
from moejax.ops.xla.ragged import ragged
from moejax.weights.declarations import DOWN_AXES, GATE_AXES, WeightLayout, expert_weights
from sharding import Rules

_logger = logging.getLogger(__name__)

BackendName = Literal["dense", "blocked", "native", "ragged", "pallas", "tokamax"]


def _always_can() -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class ExpertBackend:
    """How a device computes its experts.

    layout: `per_expert`, three arrays for each expert, or `stacked`, three arrays with a leading axis E.
    apply: (experts, x [T, D], routing) -> float32 [T, D]; experts is a sequence of `Expert`, or one stacked `Expert`.
        On a mesh they are those that one device holds, and the routing counts them from 0.
    route: (logits [T, E], valid [T], experts per token) -> Routing.
    operations: what the rest of the model computes with.
    cannot: why it does not run on the current device, or None.
    """

    layout: WeightLayout
    apply: Callable[[Any, Float[Array, "T D"], Routing], Float[Array, "T D"]]
    route: Callable[[Float[Array, "T E"], Bool[Array, " T"], int], Routing] = route
    operations: Operations = XLA
    cannot: Callable[[], str | None] = _always_can


BACKENDS: dict[BackendName, ExpertBackend] = {
    "dense": ExpertBackend(layout="stacked", apply=dense),
    "blocked": ExpertBackend(layout="per_expert", apply=blocked),
    "native": ExpertBackend(
        layout="per_expert",
        apply=native,
        route=native_route,
        operations=NATIVE,
        cannot=native_kernels.cannot_run,
    ),
    "ragged": ExpertBackend(layout="stacked", apply=ragged),
    "pallas": ExpertBackend(layout="stacked", apply=pallas, route=pallas_route, cannot=pallas_cannot_run),
    "tokamax": ExpertBackend(
        layout="stacked", apply=tokamax, route=pallas_route, cannot=functools.partial(pallas_cannot_run, "tokamax")
    ),
}


# What `auto` takes on a platform, and what instead where that cannot run.
_CHOICES: dict[str, tuple[BackendName, BackendName]] = {
    "cpu": ("native", "blocked"),
    "gpu": ("pallas", "dense"),
    "tpu": ("dense", "dense"),
}


def resolve_backend(name: str, platform: str) -> BackendName:
    """The backend called `name`; `auto` is the one for `platform` ("cpu", "gpu", "tpu").

    On CPU `native` wins at every row count and `blocked` is next (docs/decisions.md), on a GPU `pallas` reads only
    chosen experts. Where its kernels do not run, a loop whose trip count depends on the routing would wait for the host
    at every block, so `auto` takes `dense` there. Where `auto` does not take the first choice, it says so once.

    Raises:
        ValueError: for an unknown name, or a backend that cannot run here, saying why.
    """
    if name == "auto":
        first, second = _CHOICES[platform]
        if reason := BACKENDS[first].cannot():
            _log_second_choice(first, second, reason)
            return second
        return first
    if name not in BACKENDS:
        raise ValueError(f"unknown expert backend {name!r}; the known ones are auto, {', '.join(BACKENDS)}")
    if reason := BACKENDS[name].cannot():
        raise ValueError(f"expert backend {name!r}: {reason}; use expert_backend='auto'")
    return name


@functools.cache
def _log_second_choice(first: BackendName, second: BackendName, reason: str) -> None:
    _logger.warning("expert backend 'auto' takes %r, which is slower than %r: %s", second, first, reason)


class Experts(nnx.Module):
    """E expert feed-forward networks, laid out as `backend` wants them.

    `stacked`: one array [E, ...] per matrix.  `per_expert`: one array [peers, ...] per matrix and slot, where slot j
    holds the j-th expert of each of the `peers` devices that experts are split over: expert i El + j is its entry i.
    """

    def __init__(self, config: ModelConfig, backend: BackendName, rules: Rules, *, dtype: jax.typing.DTypeLike) -> None:
        self.backend: BackendName = backend
        peers = rules.parts("experts")
        if BACKENDS[backend].layout == "stacked":
            self.stacked = ExpertParams(config, config.num_experts, dtype=dtype)
        else:
            slots = [ExpertParams(config, peers, dtype=dtype) for _ in range(config.num_experts // peers)]
            self.slots = nnx.List(slots)

    def weights(self) -> Expert | list[Expert]:
        """The arrays, for `apply` on each device."""
        if BACKENDS[self.backend].layout == "stacked":
            return self.stacked.weights()
        return [slot.weights() for slot in self.slots]

    def specs(self, parallel: Parallel) -> Any:
        """How `weights` are split."""
        spec = ExpertParams.specs(parallel)
        return spec if BACKENDS[self.backend].layout == "stacked" else [spec] * len(self.slots)

    def apply(self, local: Any, x: Float[Array, "T D"], routing: Routing) -> Float[Array, "T D"]:
        """Inside `shard_map`: this device's part of the sum over experts; `local` is its part of `weights`."""
        backend = BACKENDS[self.backend]
        if backend.layout == "per_expert":
            local = [Expert(slot.gate[0], slot.up[0], slot.down[0]) for slot in local]
        return backend.apply(local, x, routing)


class ExpertParams(nnx.Module):
    """The parameters of a stack of experts."""

    def __init__(self, config: ModelConfig, stack: int, *, dtype: jax.typing.DTypeLike) -> None:
        weights, d, f = expert_weights(config, stack), config.embed_dim, config.expert_dim
        self.gate = param(*weights["gate"], init=fan_in_normal(d), dtype=dtype)
        self.up = param(*weights["up"], init=fan_in_normal(d), dtype=dtype)
        self.down = param(*weights["down"], init=fan_in_normal(f), dtype=dtype)

    def weights(self) -> Expert:
        return Expert(self.gate[...], self.up[...], self.down[...])

    @staticmethod
    def specs(parallel: Parallel) -> Any:
        """How `weights` are split."""
        gate, down = parallel.spec(*GATE_AXES), parallel.spec(*DOWN_AXES)
        specs: Any = (gate, gate, down)
        return Expert(*specs)
