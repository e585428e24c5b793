"""Routing and experts on a GPU: kernels that read only the weights of chosen experts (docs/kernels.md).

Few tokens (decode) take the kernels that read every chosen weight once; more tokens (prefill) are sorted by expert into
blocks for a grouped product, which may be another package's (tokamax).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from moejax.families.config import AttentionPolicy, RouterPolicy
from moejax.ops.expert import Expert
from moejax.ops.routing import Routing
from moejax.ops.triton.block_layout import block_layout
from moejax.ops.triton.kernels import KERNELS, Kernels, KernelsName, kernels
from moejax.ops.xla import project as xla_project
from moejax.runtime.platform import Device, current_device
from moejax.weights.storage import Stored

ProductsName = Literal["triton", "tokamax"]
# What they are on a CPU, in tests: there these backends are refused when a model is loaded.
_INTERPRETED: dict[ProductsName, KernelsName] = {"triton": "interpret", "tokamax": "interpret_tokamax"}


def pallas(experts: Expert, x: Float[Array, "T D"], routing: Routing) -> Float[Array, "T D"]:
    """Weighted sum of the chosen experts' results for every token, in float32 and then in the dtype of x.

    Raises:
        NotImplementedError: on a GPU that the kernels do not support, naming it.
    """
    return _weighted_sum(_implementation("triton"), experts, x, routing)


def tokamax(experts: Expert, x: Float[Array, "T D"], routing: Routing) -> Float[Array, "T D"]:
    """`pallas` with the grouped products of the package tokamax where there are many tokens.

    Raises:
        NotImplementedError: on a GPU that the kernels do not support, naming it, and where tokamax is not installed.
    """
    return _weighted_sum(_implementation("tokamax"), experts, x, routing)


def _weighted_sum(
    implementation: Kernels, experts: Expert, x: Float[Array, "T D"], routing: Routing
) -> Float[Array, "T D"]:
    gate, up, down = (value.numbers() for value in experts)
    if x.shape[0] <= implementation.most_tokens:
        return implementation.expert_ffn(gate, up, down, x, routing.experts, routing.weights)
    places = gate.shape[0]
    ranks, counts = routing.ranks, routing.counts
    if ranks is None or counts is None:
        ranks, counts = implementation.rank_rows(routing.experts, places)
    block = implementation.block_rows(routing.experts.size // places)
    layout = block_layout(routing.experts, ranks, counts, block)
    rows = implementation.permute(x, layout.places, block * layout.block_experts.shape[0])
    hidden = implementation.grouped_gate_up(rows, gate, up, layout.block_experts)
    results = implementation.grouped_matmul(hidden, down, layout.block_experts)
    return implementation.combine(results[None], layout.places, routing.weights, x.dtype)


def pallas_route(logits: Float[Array, "T E"], valid: Bool[Array, " T"], policy: RouterPolicy) -> Routing:
    """`reference.route` as a kernel, without a sort; its result carries ranks and counts."""
    return _implementation("triton").route(logits, valid, policy)


def pallas_route_here(
    logits: Float[Array, "T E"],
    valid: Bool[Array, " T"],
    policy: RouterPolicy,
    table: Int[Array, "3 P"],
    first: Int[Array, ""] | None,
    places: int,
) -> tuple[Int[Array, "T A"], Routing]:
    """`reference.route_here` as a kernel; its routing carries ranks and counts where every expert has one place."""
    return _implementation("triton").route_here(logits, valid, policy, table, first, places)


def pallas_project(
    x: Float[Array, "*rows I"], *weights: Stored, dtype: jax.typing.DTypeLike = jnp.float32
) -> tuple[Float[Array, "*rows O"], ...]:
    """`reference.project`: few rows in one kernel, more in XLA."""
    implementation = _implementation("triton")
    rows = x.reshape(-1, x.shape[-1])
    if not 0 < rows.shape[0] <= implementation.most_tokens:
        return xla_project.project(x, *weights, dtype=dtype)
    results = implementation.project(rows, *(w.numbers() for w in weights), dtype=dtype)
    return tuple(y.reshape(*x.shape[:-1], -1) for y in results)


def pallas_add_norm(
    x: Float[Array, "*rows D"], added: Float[Array, "*rows D"] | None, scale: Float[Array, " D"], eps: float
) -> tuple[Float[Array, "*rows D"], Float[Array, "*rows D"]]:
    """`reference.add_norm` as a kernel."""
    rows = [None if one is None else one.reshape(-1, x.shape[-1]) for one in (x, added)]
    total, normed = _implementation("triton").add_norm(*rows, scale, eps=eps)
    return total.reshape(x.shape), normed.reshape(x.shape)


def pallas_rotate(*args: Any) -> tuple[Array, Array, Array]:
    """`xla.rotate.rotate_into_cache` as a kernel."""
    return _implementation("triton").rotate(*args)


def pallas_attend(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    starts: Int[Array, " B"],
    policy: AttentionPolicy,
    sinks: Float[Array, "K G"] | None = None,
) -> Float[Array, "B K G T H"]:
    """`reference.attend` as kernels, in the dtype of q."""
    return _implementation("triton").attend(q, k, v, starts, policy, sinks)


def cannot(device: Device, name: ProductsName = "triton") -> str | None:
    """Why a device cannot run these kernels, or None."""
    reason = KERNELS[name].cannot(device)
    return None if reason is None else f"kernels {name!r} cannot run here: it {reason}"


def _implementation(name: ProductsName) -> Kernels:
    return kernels(_INTERPRETED[name] if current_device().platform == "cpu" else name)
