"""Programs for meshes of devices that are not here: bfloat16 collectives as they are asked for, and the full sizes."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from moejax._sharding import MeshConfig, mesh_shapes
from moejax._sharding.collectives import lowered_collectives
from moejax.decoding import steps
from moejax.decoding.shapes import FeedShape
from moejax.decoding.state import Features, empty_state
from moejax.families.config import ModelConfig
from moejax.families.table import named_configs
from moejax.model.structure import make_parallel, make_structure
from moejax.moe.parallel import Parallel
from moejax.moe.split import DISPATCHES, DispatchName
from moejax.planning.communication import Tokens, choice_collectives, forward_collectives
from tests.moejax.feeding import GREEDY, feed_whole_batch
from tests.moejax.mesh_programs import by_phase

SMALL = ModelConfig(
    vocab_size=304,
    embed_dim=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    num_experts=8,
    experts_per_token=2,
    expert_dim=32,
    max_position_embeddings=64,
)
FULL_SIZES = (
    ("mixtral-8x7b", "tensor=8", "replicated"),
    ("mixtral-8x7b", "expert=8,tensor=8", "replicated"),
    ("mixtral-8x7b", "data=4,expert=4,tensor=4", "gather"),
    ("mixtral-8x22b", "data=2,expert=8,tensor=4", "all_to_all"),
    ("mixtral-8x22b", "expert=2,tensor=16", "replicated"),
)


def lowered(
    config: ModelConfig,
    mesh: str | MeshConfig,
    dispatch: str,
    program: Callable[..., Any],
    arguments: Callable[..., Any],
) -> tuple[str, Parallel]:
    """The text of a program over the whole model on an abstract mesh: no device and no array is made."""
    shape = MeshConfig.parse(mesh) if isinstance(mesh, str) else mesh
    parallel = make_parallel(config, shape.abstract(), dispatch)
    structure = make_structure(config, "blocked", "bfloat16", parallel)
    params = structure.shapes()
    function = jax.jit(lambda params, *args: program(structure.merged(params), *args))
    traced = function.trace(params, *arguments(parallel))
    return traced.lower(lowering_platforms=("cpu",)).as_text(debug_info=True), parallel


def decode_step(config: ModelConfig, mesh: str | MeshConfig, dispatch: str, rows: int) -> tuple[str, Parallel]:
    features = Features()

    def arguments(parallel: Parallel) -> tuple[Any, ...]:
        state = jax.eval_shape(lambda: empty_state(config, features, rows, 64, "bfloat16", parallel))
        count = jax.ShapeDtypeStruct((), jnp.int32)
        return state, jax.ShapeDtypeStruct((rows,), bool), count, count

    return lowered(config, mesh, dispatch, lambda model, *args: steps.generate(model, features, *args), arguments)


def prefill(config: ModelConfig, mesh: str, dispatch: str, rows: int, length: int) -> tuple[str, Parallel]:
    def arguments(parallel: Parallel) -> tuple[Any, ...]:
        _, state, feed = feed_whole_batch(config, parallel, prompts=rows, width=length, length=length)
        return state, feed

    fed = FeedShape(rows, length, length, rows, in_place=True)
    return lowered(config, mesh, dispatch, lambda model, *args: steps.extend(model, GREEDY, fed, *args), arguments)


def check_step(config: ModelConfig, mesh: str | MeshConfig, dispatch: DispatchName, rows: int) -> None:
    """Those that a decode step asks for, in bfloat16; gathering the tokens of all rows is XLA's to insert."""
    text, parallel = decode_step(config, mesh, dispatch, rows)
    rules, tokens = parallel.rules, Tokens(sequences=rows, length=1)
    found = lowered_collectives(text, rules.mesh.shape)
    assert all(one.in_loop for one in found)
    asked = forward_collectives(config, rules, dispatch, tokens, "bfloat16") + [
        one for one in choice_collectives(rules, tokens) if one.axes == rules["vocab"]
    ]
    assert Counter(by_phase(found)) == Counter(asked)


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("mesh", list(mesh_shapes(8)), ids=str)
def test_collectives_of_a_bfloat16_step(mesh: MeshConfig, dispatch: DispatchName) -> None:
    check_step(SMALL, mesh, dispatch, rows=8)


@pytest.mark.parametrize(("name", "mesh", "dispatch"), FULL_SIZES)
def test_full_size_decode_step(name: str, mesh: str, dispatch: DispatchName) -> None:
    check_step(named_configs()[name], mesh, dispatch, rows=16)


@pytest.mark.parametrize(("name", "mesh", "dispatch"), FULL_SIZES[1:4])
def test_full_size_prefill(name: str, mesh: str, dispatch: DispatchName) -> None:
    config = named_configs()[name]
    text, parallel = prefill(config, mesh, dispatch, rows=16, length=512)
    tokens = Tokens(sequences=16, length=512)
    found = by_phase(lowered_collectives(text, parallel.rules.mesh.shape))
    rules = parallel.rules
    asked = forward_collectives(config, rules, dispatch, tokens, "bfloat16")
    asked += [one for one in choice_collectives(rules, Tokens(sequences=16, length=1)) if one.axes == rules["vocab"]]
    assert Counter(found) == Counter(asked)


def test_a_missing_collective_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    row = DISPATCHES["gather"]
    monkeypatch.setitem(DISPATCHES, "gather", replace(row, transfers=row.transfers[:-1]))
    with pytest.raises(AssertionError):
        check_step(SMALL, "expert=4,tensor=2", "gather", rows=8)
