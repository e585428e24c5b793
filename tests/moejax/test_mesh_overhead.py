"""A mesh of one device costs nothing: its programs are those that the bodies alone compile to."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from moejax.decoding import steps
from moejax.decoding.state import Features, empty_state
from moejax.families.config import ModelConfig
from moejax.model.structure import make_structure
from moejax.moe.parallel import Parallel
from tests.moejax.feeding import feed_whole_batch
from tests.moejax.meshes import on_mesh

CONFIG = ModelConfig(
    vocab_size=96,
    embed_dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    num_experts=4,
    experts_per_token=2,
    expert_dim=24,
    max_position_embeddings=256,
)
ROWS, LENGTH, WIDTH = 2, 64, 16


def body_alone(body: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Instead of `jax.shard_map`."""
    return body


def arguments_and_programs(parallel: Parallel) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """`generate` and `extend` as the engine calls them."""
    structure = make_structure(CONFIG, "blocked", "bfloat16", parallel)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), structure.shapes())
    features = Features()

    def shape(*sizes: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def generate(params: Any, *args: Any) -> Any:
        return steps.generate(structure.merged(params), features, *args)

    def extend(params: Any, *args: Any) -> Any:
        return steps.extend(structure.merged(params), features, fed, *args)

    state = jax.eval_shape(lambda: empty_state(CONFIG, features, ROWS, LENGTH, "bfloat16", parallel))
    fed, before, feed = feed_whole_batch(CONFIG, parallel, prompts=ROWS, width=WIDTH, length=WIDTH)
    return {
        "generate": (generate, (params, state, shape(ROWS, dtype=jnp.bool_), shape(), shape())),
        "extend": (extend, (params, before, feed)),
    }


def compiled_text(kind: str, mesh: str, dispatch: str) -> str:
    """The compiled program without its header, and without what says where it comes from and where arrays live."""
    parallel = on_mesh(CONFIG, mesh, dispatch)
    function, args = arguments_and_programs(parallel)[kind]
    whole = parallel.sharding()
    text = jax.jit(function, in_shardings=jax.tree.map(lambda _: whole, args)).lower(*args).compile().as_text()
    assert text is not None
    text = re.sub(r", (metadata|sharding|frontend_attributes)=\{([^{}\"]|\"[^\"]*\"|\{[^{}]*\})*\}", "", text)
    assert not re.search(r"metadata=|sharding=|frontend_attributes=", text.split("\n", 1)[1])
    begin = re.search(r"^(?:ENTRY )?%[\w.-]+ \(", text, re.M)
    assert begin, "no computation in the program's text"
    # Names by their first appearance: XLA numbers them by how often a function of JAX's own was traced.
    names: dict[str, int] = {}
    return re.sub(r"%[\w.-]+", lambda found: f"%{names.setdefault(found[0], len(names))}", text[begin.start() :])


@pytest.mark.parametrize("dispatch", ["replicated", "gather"])
@pytest.mark.parametrize("kind", ["generate", "extend"])
def test_a_mesh_of_one_device_compiles_to_the_same_program(
    monkeypatch: pytest.MonkeyPatch, kind: str, dispatch: str
) -> None:
    on_one_device = compiled_text(kind, "data=1,expert=1,tensor=1", dispatch)
    monkeypatch.setattr(jax, "shard_map", body_alone)
    assert compiled_text(kind, "data=1,expert=1,tensor=1", dispatch) == on_one_device
    assert not re.search(r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute", on_one_device)


def test_a_mesh_of_two_devices_is_another_program() -> None:
    """What is compared tells one program from another, collectives and all."""
    two, one = (compiled_text("extend", mesh, "replicated") for mesh in ("expert=2", "expert=1"))
    assert two != one and "all-reduce" in two
