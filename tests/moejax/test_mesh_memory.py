"""Bytes that each device holds while it decodes: those of the compiled program are those of the placements."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from moejax.config import ModelConfig
from moejax.decoding import steps
from moejax.decoding.state import Features, empty_state
from moejax.loading import abstract_model
from moejax.parallel import Parallel
from moejax.params import merge
from moejax.placement import cache_placements, param_placements
from sharding import bytes_per_device, mesh_shapes
from tests.moejax.meshes import on_mesh

CONFIG = ModelConfig(
    vocab_size=96,
    embed_dim=32,
    num_layers=1,
    num_heads=8,
    num_kv_heads=4,
    head_dim=4,
    num_experts=8,
    experts_per_token=2,
    expert_dim=24,
    max_position_embeddings=256,
)
ROWS, LENGTH, STOP_IDS = 16, 64, 2

dispatches = pytest.mark.parametrize("dispatch", ["replicated", "gather", "all_to_all"])
meshes = pytest.mark.parametrize("mesh", [str(mesh) for mesh in mesh_shapes(8)])


def compiled_generate(parallel: Parallel, features: Features, dtype: str) -> Any:
    """The decode loop, compiled for arguments that live where the model and the engine put them."""
    graphdef, abstract = abstract_model(CONFIG, "dense", dtype, parallel)
    params = {
        path: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=parallel.sharding(*one.get_metadata("out_sharding"))
        )
        for path, one in abstract.items()
        for leaf in [one.get_value()]
    }
    state = jax.jit(lambda: empty_state(CONFIG, features, ROWS, LENGTH, dtype, parallel))()
    whole = parallel.sharding()
    cancelled = jax.ShapeDtypeStruct((ROWS,), bool, sharding=whole)
    most = jax.ShapeDtypeStruct((), np.int32, sharding=whole)
    generate = jax.jit(
        lambda params, *args: steps.generate(merge(graphdef, abstract, params), features, *args), donate_argnums=(1,)
    )
    return generate.lower(params, state, cancelled, most).compile()


def state_bytes(parallel: Parallel, features: Features) -> int:
    """Per device, of all that is neither weights nor cache; sizes in bytes.

    A row has its token, position and count (4 each) and whether it goes on (1); its sampling parameters, nine of 4, a
    key of 8 and the stop ids of 4; whether it was cancelled (1). The number of steps is 4. Where tokens are penalised,
    each device has its own rows' occurrences, 1 for a prompt and 4 for an output, of every word of the vocabulary.
    """
    per_row = 3 * 4 + 1 + 9 * 4 + 8 + 4 * STOP_IDS + 1
    occurrences = (1 + 4) * CONFIG.vocab_size if features.penalize else 0
    return ROWS * per_row + 4 + ROWS // parallel.rules.parts("batch") * occurrences


def check(mesh: str, dispatch: str, features: Features, dtype: str) -> None:
    parallel = on_mesh(CONFIG, mesh, dispatch)
    _, abstract = abstract_model(CONFIG, "dense", dtype, parallel)
    weights = bytes_per_device(param_placements(abstract, parallel.rules))
    cache = bytes_per_device(cache_placements(CONFIG, parallel.rules, ROWS, LENGTH, dtype))
    memory = compiled_generate(parallel, features, dtype).memory_analysis()
    assert memory.argument_size_in_bytes == weights + cache + state_bytes(parallel, features)
    assert memory.alias_size_in_bytes >= cache, "the cache is not updated in place"


@dispatches
@meshes
def test_arguments_are_weights_cache_and_state(mesh: str, dispatch: str) -> None:
    check(mesh, dispatch, Features(stop_ids=STOP_IDS), "bfloat16")


@pytest.mark.parametrize(("mesh", "dispatch"), [("expert=4,tensor=2", "replicated"), ("data=2,expert=4", "gather")])
def test_occurrences_are_split_as_the_rows(mesh: str, dispatch: str) -> None:
    """And float32 takes twice the weights and the cache."""
    check(mesh, dispatch, Features(stop_ids=STOP_IDS, sample=True, penalize=True), "float32")


def test_what_a_device_holds_depends_on_the_mesh() -> None:
    """Eighths of the experts everywhere but with data; more of attention under `gather`."""

    def weights(mesh: str, dispatch: str) -> int:
        parallel = on_mesh(dataclasses.replace(CONFIG, num_kv_heads=8), mesh, dispatch)
        config = dataclasses.replace(CONFIG, num_kv_heads=8)
        _, abstract = abstract_model(config, "dense", "bfloat16", parallel)
        return bytes_per_device(param_placements(abstract, parallel.rules))

    whole = weights("data=8", "replicated")
    assert weights("tensor=8", "replicated") == weights("expert=8", "replicated") < whole / 6
    assert weights("expert=8", "replicated") < weights("expert=8", "gather") < whole / 2
