"""Backend `pallas`: kernels that read only the weights of chosen experts, for GPUs (docs/kernels.md).

Few tokens (decode) take the kernels that read every chosen weight once; more tokens (prefill) are sorted by expert into
blocks for a grouped product. Backend `tokamax` is the same with the grouped product of another package.
"""

from typing import Literal

from jax import Array
from jaxtyping import Bool, Float

from moejax.ops.block_layout import block_layout
from moejax.ops.expert import Expert
from moejax.ops.kernels import Kernels, KernelsName, kernels
from moejax.ops.routing import Routing
from moejax.ops.triton.blocks import grouped_rows
from moejax.ops.triton.few_tokens import MOST_TOKENS
from moejax.runtime.platform import current_device

KernelsOfBackend = Literal["triton", "tokamax"]
# What they are on a CPU, in tests: there `resolve_backend` refuses these backends.
_INTERPRETED: dict[KernelsOfBackend, KernelsName] = {"triton": "interpret", "tokamax": "interpret_tokamax"}


def pallas(experts: Expert, x: Float[Array, "T D"], routing: Routing) -> Float[Array, "T D"]:
    """Weighted sum of the chosen experts' results for every token; float32 result.

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
    if x.shape[0] <= MOST_TOKENS:
        return implementation.expert_ffn(*experts, x, routing.experts, routing.weights)
    num_experts = experts.gate.shape[0]
    ranks, counts = routing.ranks, routing.counts
    if ranks is None or counts is None:
        ranks, counts = implementation.rank_rows(routing.experts, num_experts)
    block = grouped_rows(routing.experts.size // num_experts)
    layout = block_layout(routing.experts, ranks, counts, block)
    rows = implementation.permute(x, layout.places, block * layout.block_experts.shape[0])
    hidden = implementation.grouped_gate_up(rows, experts.gate, experts.up, layout.block_experts)
    results = implementation.grouped_matmul(hidden, experts.down, layout.block_experts)
    return implementation.combine(results[None], layout.places, routing.weights)


def pallas_route(logits: Float[Array, "T E"], valid: Bool[Array, " T"], experts_per_token: int) -> Routing:
    """`router.route` as a kernel, without a sort; its result carries ranks and counts."""
    routes = _implementation("triton").route(logits, valid, experts_per_token)
    return Routing(routes.experts, routes.weights, routes.ranks, routes.counts)


def cannot_run(name: KernelsOfBackend = "triton") -> str | None:
    """Why the current device cannot run these kernels, or None."""
    try:
        kernels(name)
    except NotImplementedError as error:
        return str(error)
    return None


def _implementation(name: KernelsOfBackend) -> Kernels:
    return kernels(_INTERPRETED[name] if current_device().platform == "cpu" else name)
