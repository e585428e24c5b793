"""Kernels and programs around them, lowered for CUDA without a GPU and verified; a GPU has not compiled them.

At the full size of Mixtral 8x7B, which costs nothing here.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from moejax.decoding import steps
from moejax.decoding.state import Features, empty_state
from moejax.families.table import named_config
from moejax.model.cache import empty_cache
from moejax.model.structure import make_parallel, make_structure
from moejax.ops.triton.few_tokens import MOST_TOKENS
from moejax.ops.triton.kernels import KERNELS
from moejax.ops.triton.launch import Out, launch
from moejax.runtime.platform import A100, H100, Device, tracing_for
from tests.moejax.ops.triton.cases import top
from tests.moejax.ops.triton.lowering import abstract, abstract_mesh, lower, lower_alone, lower_moe_layer

CONFIG = named_config("mixtral-8x7b")
E, F, D, A = CONFIG.num_experts, CONFIG.expert_dim, CONFIG.embed_dim, CONFIG.experts_per_token
DEVICES = pytest.mark.parametrize("device", [H100, A100], ids=["sm90", "sm80"])

ONE_TOKEN = ["route", "few_tokens_gate_up", "one_token_down"]
FEW_TOKENS = ["route", "few_tokens_gate_up", "few_tokens_down", "combine"]
# Two launches of the router where tokens fill several of its blocks.
MANY_TOKENS = ["route", "add_earlier_blocks", "permute", "grouped_gate_up", "grouped_matmul", "combine"]

# Of one query; several take "attend". Each norm is computed with the sum before it.
ATTENTION = ["add_norm", "project", "rotate_into_cache", "attend_part", "add_parts", "project", "add_norm"]

# What XLA makes of routing and of `ragged_dot`, and other ways to move weights about.
FORBIDDEN = (
    "stablehlo.sort",
    "chlo.top_k",
    "chlo.ragged_dot",
    "stablehlo.gather",
    "stablehlo.dynamic_gather",
    "stablehlo.scatter",
    "stablehlo.transpose",
)


def shape(*sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


WEIGHTS = (shape(E, F, D), shape(E, F, D), shape(E, D, F))


def ids(*sizes: int) -> jax.ShapeDtypeStruct:
    return shape(*sizes, dtype=jnp.int32)


def floats(*sizes: int) -> jax.ShapeDtypeStruct:
    return shape(*sizes, dtype=jnp.float32)


triton = KERNELS["triton"]
CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], list[str]]] = {
    "route 1": (
        lambda x, v: triton.route(x, v, top(A)),
        (floats(1, E), shape(1, dtype=bool)),
        ["route"],
    ),
    "route bfloat16": (
        lambda x, v: triton.route(x, v, top(4)),
        (shape(32, 60), shape(32, dtype=bool)),
        ["route"],
    ),
    "route of 2": (
        lambda x, v: triton.route(x, v, top(1)),
        (floats(3, 2), shape(3, dtype=bool)),
        ["route"],
    ),
    "route of 127": (
        lambda x, v: triton.route(x, v, top(4)),
        (shape(65, 127), shape(65, dtype=bool)),
        ["route", "add_earlier_blocks"],
    ),
    "route 4096": (
        lambda x, v: triton.route(x, v, top(A)),
        (floats(4096, 128), shape(4096, dtype=bool)),
        ["route", "add_earlier_blocks"],
    ),
    "rank_rows": (lambda x: triton.rank_rows(x, E), (ids(4096, A),), ["rank_rows", "add_earlier_blocks"]),
    "permute": (lambda x, p: triton.permute(x, p, 9216), (shape(4096, D), ids(4096, A)), ["permute"]),
    "combine": (triton.combine, (floats(2, 64, D), ids(32, A), floats(32, A)), ["combine"]),
    "expert_ffn 1": (triton.expert_ffn, (*WEIGHTS, shape(1, D), ids(1, A), floats(1, A)), ONE_TOKEN[1:]),
    "expert_ffn 2": (triton.expert_ffn, (*WEIGHTS, shape(2, D), ids(2, A), floats(2, A)), FEW_TOKENS[1:]),
    "expert_ffn 64": (triton.expert_ffn, (*WEIGHTS, shape(64, D), ids(64, A), floats(64, A)), FEW_TOKENS[1:]),
    "expert_ffn float32": (
        triton.expert_ffn,
        (floats(5, 96, 40), floats(5, 96, 40), floats(5, 40, 96), floats(3, 40), ids(3, 2), floats(3, 2)),
        FEW_TOKENS[1:],
    ),
    "grouped_gate_up": (triton.grouped_gate_up, (shape(9216, D), *WEIGHTS[:2], ids(72)), ["grouped_gate_up"]),
    "grouped_matmul": (triton.grouped_matmul, (shape(9216, F), WEIGHTS[2], ids(72)), ["grouped_matmul"]),
    "grouped odd sizes": (triton.grouped_matmul, (shape(60, 100), shape(3, 300, 100), ids(5)), ["grouped_matmul"]),
}


@DEVICES
@pytest.mark.parametrize("call", CALLS)
def test_each_kernel_is_one_call(call: str, device: Device) -> None:
    function, args, names = CALLS[call]
    lowered = lower_alone(function, *args, device=device)
    assert [kernel.name for kernel in lowered.kernels] == names
    assert lowered.count(*FORBIDDEN) == 0
    for kernel in lowered.kernels:
        assert constant_selections(kernel.module) == []


def test_a_selection_between_constants_is_found() -> None:
    def kernel(x_ref, y_ref):
        y_ref[0] = jnp.where(x_ref[0] < 3, 8, 0)

    (bad,) = lower_alone(
        lambda x: launch(kernel, "bad", (1,), (Out((1,), jnp.int32),), (x,), warps=1, interpret=False),
        ids(1),
        device=H100,
    ).kernels
    assert len(constant_selections(bad.module)) == 1


def constant_selections(module: str) -> list[str]:
    """Selections between two boolean constants, to which Pallas lowers `jnp.where(scalar, 8, 0)`."""
    return re.findall(r"arith\.select %\w+, %(?:true|false)\w*, %(?:true|false)\w* : i1", module)


@DEVICES
@pytest.mark.parametrize(
    ("tokens", "names"), [(1, ONE_TOKEN), (2, FEW_TOKENS), (MOST_TOKENS, FEW_TOKENS), (4096, MANY_TOKENS)]
)
def test_moe_layer(tokens: int, names: list[str], device: Device) -> None:
    """No sort, no gather, no product of XLA's but the router's of many tokens; weights are not remade."""
    lowered = lower_moe_layer(tokens, device)
    few = tokens <= MOST_TOKENS
    assert [kernel.name for kernel in lowered.kernels] == ["project"] * few + names
    assert lowered.count(*FORBIDDEN) == 0
    assert lowered.count("stablehlo.dot_general") == (0 if few else 1)
    # Decode makes no array as large as one matrix of one expert, prefill none larger than F values for each padded row.
    largest = F * D - 1 if few else (tokens * A + E * 127) * F
    assert all(size <= largest for _, size in lowered.result_sizes())


@pytest.mark.parametrize("tokens", [1, 8, MOST_TOKENS])
def test_at_most_five_launches_in_decode(tokens: int) -> None:
    """Nothing between the kernels is computed in XLA, so that nothing else can be a launch."""
    lowered = lower_moe_layer(tokens, H100)
    assert len(lowered.kernels) == (4 if tokens == 1 else 5)
    moved = {"reshape", "constant", "slice", "return", "custom_call", "convert", "broadcast_in_dim"}
    others = {one.operation.name for one in lowered.operations if one.operation.name.startswith("stablehlo.")}
    assert others <= {f"stablehlo.{name}" for name in moved}


def test_the_dense_backend_would_be_noticed() -> None:
    """The checks of `test_moe_layer` are not empty: XLA's way of routing and of experts breaks them."""
    lowered = lower_moe_layer(8, H100, backend="ragged")
    assert lowered.count(*FORBIDDEN) > 0 and lowered.kernels == []


LAYERS = 2


@DEVICES
@pytest.mark.parametrize(("batch", "names"), [(1, ONE_TOKEN), (8, FEW_TOKENS)])
def test_whole_decode_step(batch: int, names: list[str], device: Device) -> None:
    """The compiled decode loop, embedding to sampled token, with two layers of full size."""
    config = dataclasses.replace(CONFIG, num_layers=LAYERS)
    parallel = make_parallel(config, abstract_mesh(device), "replicated")
    with tracing_for(device):
        structure = make_structure(config, "pallas", "bfloat16", parallel)
    shapes = abstract({path: variable.get_value() for path, variable in structure.abstract.items()})
    features = Features()
    state = jax.eval_shape(lambda: empty_state(config, features, batch, 512, "bfloat16", parallel))
    lowered = lower(
        lambda p, *args: steps.generate(structure.merged(p), features, *args),
        shapes,
        state,
        shape(batch, dtype=bool),
        ids(),
        ids(),
        device=device,
    )
    assert [kernel.name for kernel in lowered.kernels] == [
        *[*ATTENTION, "project", *names] * LAYERS,
        "add_norm",
        "project",
    ]
    # The loop hands the weights on; nothing else makes an array of their size.
    assert all(size < E * F * D for name, size in lowered.result_sizes() if name != "stablehlo.while")


@DEVICES
def test_whole_prefill(device: Device) -> None:
    config = dataclasses.replace(CONFIG, num_layers=LAYERS)
    parallel = make_parallel(config, abstract_mesh(device), "replicated")
    with tracing_for(device):
        structure = make_structure(config, "pallas", "bfloat16", parallel)
    shapes = abstract({path: variable.get_value() for path, variable in structure.abstract.items()})
    cache = jax.eval_shape(lambda: empty_cache(config, 2, 2048, "bfloat16", parallel))
    lowered = lower(
        lambda p, *args: structure.merged(p)(*args), shapes, ids(2, 2048), ids(2), ids(2), cache, device=device
    )
    assert [kernel.name for kernel in lowered.kernels] == [
        *["add_norm", "rotate_into_cache", "attend", "add_norm", *MANY_TOKENS] * LAYERS,
        "add_norm",
    ]
    assert lowered.count("stablehlo.while") == 0  # a loop that the host would drive
