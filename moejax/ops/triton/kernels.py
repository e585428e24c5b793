"""The table of GPU kernels: the steps that `route` and `experts` are made of on a GPU, and how a set is chosen.

Adding one: a module whose functions have the signatures of `reference`, a row in `KERNELS`, its name in `KernelsName`.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from jax import Array

from moejax.ops import reference as operations
from moejax.ops.routing import Routing
from moejax.ops.triton import (
    attend,
    few_tokens,
    grouped,
    grouped_tokamax,
    norm,
    permute,
    project,
    reference,
    rotate,
    route,
)
from moejax.ops.triton.blocks import grouped_rows
from moejax.ops.xla.rotate import rotate_into_cache
from moejax.runtime.platform import Device, current_device

KernelsName = Literal["triton", "tokamax", "interpret", "interpret_tokamax", "reference"]
OLDEST_CAPABILITY = (8, 0)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """One implementation of every kernel; signatures and results are those of `reference`.

    cannot: why it does not run on a device, or None.
    most_tokens: up to how many tokens `expert_ffn` and `project` take; more are sorted for the grouped products.
    block_rows: rows of a block of the grouped products, from the mean number of rows per expert.
    """

    route: Callable[..., Routing]
    route_here: Callable[..., tuple[Array, Routing]]
    project: Callable[..., tuple[Array, ...]]
    add_norm: Callable[..., tuple[Array, Array]]
    rotate: Callable[..., tuple[Array, Array, Array]]
    attend: Callable[..., Array]
    rank_rows: Callable[..., tuple[Array, Array]]
    permute: Callable[..., Array]
    combine: Callable[..., Array]
    expert_ffn: Callable[..., Array]
    grouped_gate_up: Callable[..., Array]
    grouped_matmul: Callable[..., Array]
    cannot: Callable[[Device], str | None]
    most_tokens: int = few_tokens.MOST_TOKENS
    block_rows: Callable[[int], int] = grouped_rows


def _triton_cannot(device: Device) -> str | None:
    needed = "an NVIDIA GPU of compute capability 8.0 or more"
    if device.platform != "gpu" or device.capability is None:
        return f"needs {needed}, this is {device.kind} ({device.platform})"
    if device.capability < OLDEST_CAPABILITY:
        return f"needs {needed}, {device.kind} has {device.capability[0]}.{device.capability[1]}"
    return None


def _tokamax_cannot(device: Device) -> str | None:
    return _triton_cannot(device) or grouped_tokamax.missing()


def _interpreted_tokamax_cannot(device: Device) -> str | None:
    return grouped_tokamax.missing()


def _always(device: Device) -> None:
    return None


_TRITON = Kernels(
    route=route.route,
    route_here=route.route_here,
    project=project.project,
    add_norm=norm.add_norm,
    rotate=rotate.rotate_into_cache,
    attend=attend.attend,
    rank_rows=route.rank_rows,
    permute=permute.permute,
    combine=permute.combine,
    expert_ffn=few_tokens.expert_ffn,
    grouped_gate_up=grouped.grouped_gate_up,
    grouped_matmul=grouped.grouped_matmul,
    cannot=_triton_cannot,
)

# The Triton kernels, step by step in XLA on any device: exact and very slow, for tests.
_INTERPRETED = Kernels(
    route=functools.partial(route.route, interpret=True),
    route_here=functools.partial(route.route_here, interpret=True),
    project=functools.partial(project.project, interpret=True),
    add_norm=functools.partial(norm.add_norm, interpret=True),
    rotate=functools.partial(rotate.rotate_into_cache, interpret=True),
    attend=functools.partial(attend.attend, interpret=True),
    rank_rows=functools.partial(route.rank_rows, interpret=True),
    permute=functools.partial(permute.permute, interpret=True),
    combine=functools.partial(permute.combine, interpret=True),
    expert_ffn=functools.partial(few_tokens.expert_ffn, interpret=True),
    grouped_gate_up=functools.partial(grouped.grouped_gate_up, interpret=True),
    grouped_matmul=functools.partial(grouped.grouped_matmul, interpret=True),
    cannot=_always,
)


def _with_tokamax(others: Kernels, cannot: Callable[[Device], str | None]) -> Kernels:
    return replace(
        others,
        grouped_gate_up=grouped_tokamax.grouped_gate_up,
        grouped_matmul=grouped_tokamax.grouped_matmul,
        cannot=cannot,
    )


# In the order in which None tries them.
KERNELS: dict[KernelsName, Kernels] = {
    "triton": _TRITON,
    "reference": Kernels(
        route=reference.route,
        route_here=reference.route_here,
        project=operations.project,
        add_norm=operations.add_norm,
        rotate=rotate_into_cache,
        attend=operations.attend,
        rank_rows=reference.rank_rows,
        permute=reference.permute,
        combine=reference.combine,
        expert_ffn=operations.expert_ffn,
        grouped_gate_up=reference.grouped_gate_up,
        grouped_matmul=reference.grouped_matmul,
        cannot=_always,
    ),
    # tokamax's grouped products, the Triton kernels for all else. Only by name: which is faster has not been measured.
    "tokamax": _with_tokamax(_TRITON, _tokamax_cannot),
    "interpret": _INTERPRETED,
    "interpret_tokamax": _with_tokamax(_INTERPRETED, _interpreted_tokamax_cannot),
}


def kernels(name: str | None = None) -> Kernels:
    """The implementation called `name`, or the first one that runs on the current device.

    Raises:
        ValueError: for an unknown name.
        NotImplementedError: for one that does not run on the current device, saying why.
    """
    device = current_device()
    if name is None:
        name = next(known for known, implementation in KERNELS.items() if implementation.cannot(device) is None)
    if name not in KERNELS:
        raise ValueError(f"unknown kernels {name!r}; the known ones are {', '.join(KERNELS)}")
    if reason := KERNELS[name].cannot(device):
        raise NotImplementedError(f"kernels {name!r} cannot run here: it {reason}")
    _log_choice(name, device)
    return KERNELS[name]


@functools.cache
def _log_choice(name: str, device: Device) -> None:
    _logger.info("kernels %r on %s", name, device.kind)
