"""The operations that the forward pass is made of, the ways to compute each, and how a model chooses.

An implementation need not have every operation: what it lacks is computed in XLA. A model uses one `Ops` throughout,
chosen by the name of its expert backend when it is loaded.

Adding an operation of an implementation: a function with the signature of the others, and its entry in `OPS`. Adding an
expert backend: its function in `EXPERTS`, a row in `BACKENDS`, its name in `BackendName`.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from jax import Array
from jaxtyping import Bool, Float, Int

from moejax.families.config import RouterPolicy
from moejax.ops import reference
from moejax.ops.expert import Expert
from moejax.ops.native import library, model_ops
from moejax.ops.native import ops as native
from moejax.ops.native.build import NativeError
from moejax.ops.native.packed import Packed
from moejax.ops.routing import Routing
from moejax.ops.triton import experts as triton
from moejax.ops.xla import attend as xla_attend
from moejax.ops.xla import project as xla_project
from moejax.ops.xla.blocked import blocked
from moejax.ops.xla.dense import dense
from moejax.ops.xla.ragged import ragged
from moejax.ops.xla.rotate import rotate_into_cache
from moejax.runtime.platform import Device, current_device
from moejax.weights.inputs_first import InputsFirst
from moejax.weights.layouts import LayoutName
from moejax.weights.storage import Plain, Stored

_logger = logging.getLogger(__name__)

Operation = Literal["project", "norm", "add_norm", "rotate", "attend", "route", "route_here", "zeros"]
ImplementationName = Literal["xla", "native", "triton", "tokamax"]
BackendName = Literal["dense", "blocked", "native", "ragged", "pallas", "tokamax"]

OPS: Mapping[Operation, Mapping[ImplementationName, Callable[..., Any]]] = {
    "project": {"xla": xla_project.project, "native": model_ops.project, "triton": triton.pallas_project},
    "norm": {"xla": reference.norm, "native": model_ops.norm},
    "add_norm": {
        "xla": reference.add_norm,
        "native": functools.partial(reference.add_norm, norm=model_ops.norm),
        "triton": triton.pallas_add_norm,
    },
    "rotate": {"xla": rotate_into_cache, "native": native.rotate_into_cache, "triton": triton.pallas_rotate},
    "attend": {"xla": xla_attend.attend, "native": native.attend, "triton": triton.pallas_attend},
    "route": {"xla": reference.route, "native": native.route, "triton": triton.pallas_route},
    "route_here": {
        "xla": reference.route_here,
        "native": functools.partial(reference.route_here, route=native.route),
        "triton": triton.pallas_route_here,
    },
    "zeros": {"xla": reference.zeros, "native": native.zeros},
}


@dataclass(frozen=True, kw_only=True)
class ExpertBackend:
    """A way to compute the experts of one device.

    apply: (experts, x [T, D], routing) -> [T, D], summed in float32 and in it or in the dtype of x; the routing counts
    the device's places from 0.
    layout: how it wants their weights.  storage: of every matrix of a model that uses it.
    implementations: where the other operations come from, the first that has each; XLA's are the last.
    cannot: why it does not run on a device, or None; asking starts and compiles nothing.
    prepare: what has to be done before its first program, or None. Raises NativeError where it cannot be.
    differentiable: whether a whole forward pass with it has gradients (reverse mode), in float32.
    """

    apply: Callable[[Expert, Float[Array, "T D"], Routing], Float[Array, "T D"]]
    layout: LayoutName
    storage: type[Stored] = Plain
    implementations: tuple[ImplementationName, ...] = ()
    cannot: Callable[[Device], str | None] = lambda device: None
    prepare: Callable[[], object] | None = None
    differentiable: bool = False


BACKENDS: dict[BackendName, ExpertBackend] = {
    "dense": ExpertBackend(apply=dense, layout="stacked", differentiable=True),
    "blocked": ExpertBackend(apply=blocked, layout="separate"),
    "native": ExpertBackend(
        apply=model_ops.experts,
        layout="stacked",
        storage=Packed,
        implementations=("native",),
        cannot=library.cannot,
        prepare=library.targets,
    ),
    "ragged": ExpertBackend(apply=ragged, layout="stacked", storage=InputsFirst),
    "pallas": ExpertBackend(apply=triton.pallas, layout="stacked", implementations=("triton",), cannot=triton.cannot),
    "tokamax": ExpertBackend(
        apply=triton.tokamax,
        layout="stacked",
        implementations=("tokamax", "triton"),
        cannot=functools.partial(triton.cannot, name="tokamax"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Ops:
    """One implementation of every operation.

    project: (x [*rows, I], weights [O_i, I], ..., dtype=float32) -> x w^T for each weight [*rows, O_i].
    norm: (x [*rows, D], scale [D], eps) -> x / rms(x) * scale, in the dtype of x.  add_norm: see `reference.add_norm`.
    rotate: see `xla.rotate.rotate_into_cache`.  attend: see `reference.attend`; float32, or the dtype of the queries.
    route: (logits [T, E], valid [T], policy) -> Routing.  route_here: see `reference.route_here`.
    zeros: (shapes and dtypes, ...) -> an array of zeros each: an empty cache.
    experts: (experts, x [T, D], routing) -> [T, D], float32 or the dtype of x.  layout: of their weights.
    storage: of the matrices that `project` and `experts` multiply.
    chosen: which implementation computes each operation.
    """

    project: Callable[..., tuple[Array, ...]]
    norm: Callable[..., Float[Array, "*rows D"]]
    add_norm: Callable[..., tuple[Float[Array, "*rows D"], Float[Array, "*rows D"]]]
    rotate: Callable[..., tuple[Array, Array, Array]]
    attend: Callable[..., Float[Array, "B K G T H"]]
    route: Callable[[Float[Array, "T E"], Bool[Array, " T"], RouterPolicy], Routing]
    route_here: Callable[..., tuple[Int[Array, "T A"], Routing]]
    zeros: Callable[..., tuple[Array, ...]]
    experts: Callable[[Expert, Float[Array, "T D"], Routing], Float[Array, "T D"]]
    layout: LayoutName
    storage: type[Stored]
    chosen: Mapping[Operation, ImplementationName]

    @property
    def reads_all(self) -> bool:
        """Whether `attend` reads positions of the cache that no query sees."""
        return self.chosen["attend"] == "xla"


def make_ops(
    backend: BackendName, implementations: Mapping[Operation, ImplementationName] = MappingProxyType({})
) -> Ops:
    """The operations of a model whose experts `backend` computes.

    Args:
        implementations: for an operation, the implementation to take instead of the backend's.

    Raises:
        ValueError: for an implementation that lacks the operation.
    """
    row = BACKENDS[backend]
    chosen: dict[Operation, ImplementationName] = {}
    for operation, known in OPS.items():
        asked = implementations.get(operation)
        if asked is not None and asked not in known:
            raise ValueError(f"{asked!r} does not have the operation {operation!r}; it is in {', '.join(known)}")
        preferred: list[ImplementationName] = [name for name in (*row.implementations, "xla") if name in known]
        chosen[operation] = asked or preferred[0]
    functions: dict[str, Any] = {operation: OPS[operation][name] for operation, name in chosen.items()}
    storage = Packed if chosen["project"] == "native" else row.storage
    return Ops(**functions, experts=row.apply, layout=row.layout, storage=storage, chosen=chosen)


# What `auto` takes on a platform, and what instead where that cannot run.
_CHOICES: dict[str, tuple[BackendName, BackendName]] = {
    "cpu": ("native", "blocked"),
    "gpu": ("pallas", "dense"),
    "tpu": ("ragged", "ragged"),
}


def resolve_backend(name: str, platform: str) -> BackendName:
    """The backend called `name`; `auto` is the one for `platform` ("cpu", "gpu", "tpu"). Starts and compiles nothing.

    On CPU `native` wins at every row count and `blocked` is next (docs/decisions.md), on a GPU `pallas` reads only
    chosen experts. Where its kernels do not run, a loop whose trip count depends on the routing would wait for the host
    at every block, so `auto` takes `dense` there. On a TPU XLA multiplies each row by its own expert (`ragged`). Where
    `auto` does not take the first choice, it says so once.

    Raises:
        ValueError: for an unknown name, or a backend that cannot run here, saying why.
    """
    device = current_device()
    if name == "auto":
        first, second = _CHOICES[platform]
        if reason := BACKENDS[first].cannot(device):
            _log_second_choice(first, second, reason)
            return second
        return first
    known = backend_name(name)
    if reason := BACKENDS[known].cannot(device):
        raise ValueError(f"expert backend {name!r}: {reason}; use expert_backend='auto'")
    return known


def backend_name(name: str) -> BackendName:
    """Checks the name of an expert backend.

    Raises:
        ValueError: for an unknown name.
    """
    for known in BACKENDS:
        if name == known:
            return known
    raise ValueError(f"unknown expert backend {name!r}; the known ones are auto, {', '.join(BACKENDS)}")


def prepare_backend(name: str, platform: str) -> BackendName:
    """The backend called `name`, as `resolve_backend` has it, ready to run: kernels are compiled and loaded.

    Raises:
        ValueError: for an unknown name, or a backend that cannot run here, saying why.
    """
    found = resolve_backend(name, platform)
    prepare = BACKENDS[found].prepare
    if prepare is None:
        return found
    try:
        prepare()
    except NativeError as error:
        if name != "auto":
            raise ValueError(f"expert backend {found!r}: {error}; use expert_backend='auto'") from error
        second = _CHOICES[platform][1]
        _log_second_choice(found, second, str(error))
        return second
    return found


@functools.cache
def _log_second_choice(first: BackendName, second: BackendName, reason: str) -> None:
    _logger.warning("expert backend 'auto' takes %r, which is slower than %r: %s", second, first, reason)
