"""The whole model on the compiled kernels: what it promises beyond the other backends, and how it calls them."""

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moejax
from moejax.loading import Model
from moejax.model.cache import empty_cache
from moejax.model.params import ParamTree
from moejax.ops.native.build import source_hash

PROMPTS = ["A list is", "The import statement combines two operations; it searches for the named module, then", "x"]


@pytest.fixture(scope="module")
def model() -> Model:
    return moejax.load("demo", dtype="bfloat16", expert_backend="native")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """As wide as the models of the benchmarks: XLA vectorises what it fuses by the shape that it has."""
    path = tmp_path_factory.mktemp("wide") / "config.json"
    config = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_act": "silu"}
    sizes = {"hidden_size": 512, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 256, "head_dim": 64}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
    path.write_text(json.dumps(config | sizes | heads | {"max_position_embeddings": 64, "tie_word_embeddings": False}))
    return moejax.load(f"random:{path}", dtype="bfloat16", expert_backend="native")


def test_logits_and_cache_of_a_row_have_the_same_bits_in_any_batch(wide: Model) -> None:
    """Alone or among others, in programs for more tokens or fewer."""
    tokens = np.random.default_rng(0).integers(3, 256, (16, 64)).astype(np.int32)

    @jax.jit
    def feed(params: ParamTree, tokens: jax.Array, starts: jax.Array, lengths: jax.Array) -> Any:
        mixtral = wide.merged(params)
        cache = empty_cache(wide.config, tokens.shape[0], 80, "bfloat16", wide.parallel)
        hidden, cache, _ = mixtral(tokens, starts, lengths, cache)
        return mixtral.logits(hidden), [(layer.k, layer.v) for layer in cache]

    def run(rows: slice, width: int) -> tuple[np.ndarray, list[np.ndarray]]:
        given = tokens[rows, :width]
        starts, lengths = (np.full(given.shape[0], n, np.int32) for n in (0, width))
        logits, cache = feed(wide.params, given, starts, lengths)
        return np.asarray(logits), [np.asarray(part)[:, :, :width] for part in jax.tree.leaves(cache)]

    logits, cache = run(slice(16), 64)
    for rows, width in ((slice(0, 1), 64), (slice(8, 16), 17), (slice(2, 3), 1)):
        alone, held = run(rows, width)
        np.testing.assert_array_equal(alone, logits[rows, :width])
        for one, all_ in zip(held, cache, strict=True):
            np.testing.assert_array_equal(one, all_[rows, :, :width])


def test_tokens_do_not_depend_on_the_split_over_data() -> None:
    """Eight devices that share the threads of one machine: whole experts on each, rows of the batch divided."""
    model = moejax.load("demo", dtype="float32", expert_backend="native")
    mesh = moejax.load("demo", dtype="float32", expert_backend="native", mesh="data=8")
    expected = moejax.decode(model, PROMPTS, max_tokens=16, ignore_eos=True)
    for one, other in zip(moejax.decode(mesh, PROMPTS, max_tokens=16, ignore_eos=True), expected, strict=True):
        assert one.token_ids == other.token_ids


def test_a_layer_is_nine_calls(model: Model) -> None:
    tokens, starts, lengths = jnp.ones((2, 1), jnp.int32), jnp.zeros(2, jnp.int32), jnp.ones(2, jnp.int32)

    def forward(params: ParamTree) -> jax.Array:
        cache = empty_cache(model.config, 2, 16, "bfloat16", model.parallel)
        return model.merged(params)(tokens, starts, lengths, cache)[0]

    text = jax.jit(forward).lower(model.params).compile().as_text()
    assert text is not None
    called = re.findall(rf'custom_call_target="moejax_(\w+)_{source_hash()}"', text)
    layers = model.config.num_layers
    assert {name: called.count(name) for name in set(called)} == {
        "norm": 2 * layers + 1,
        "linear": 3 * layers,  # queries, keys and values; the output; the router
        "rotate": layers,
        "attend": layers,
        "route": layers,
        "experts": layers,
    }
    assert "while(" not in text
