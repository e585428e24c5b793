"""The whole model on the compiled kernels: what it promises beyond the other backends, and how it calls them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moejax
from moejax.cache import empty_cache
from moejax.loading import Model
from moejax.native.build import source_hash
from moejax.params import ParamTree

PROMPTS = ["A list is", "The import statement combines two operations; it searches for the named module, then", "x"]


@pytest.fixture(scope="module")
def model() -> Model:
    return moejax.load("demo", dtype="bfloat16", expert_backend="native")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_logits_have_the_same_bits_in_any_batch(dtype: str) -> None:
    model = moejax.load("demo", dtype=dtype, expert_backend="native")
    prompts = [[0, 17, 42, 99, 7], [5] * 40, [3, 4], list(range(100, 131))]
    together = moejax.logits(model, prompts)
    for prompt, expected in zip(prompts, together, strict=True):
        np.testing.assert_array_equal(moejax.logits(model, [prompt])[0], expected)


def test_tokens_do_not_depend_on_the_split_over_data() -> None:
    """Eight devices that share the threads of one machine: whole experts on each, rows of the batch divided."""
    model = moejax.load("demo", dtype="float32", expert_backend="native")
    mesh = moejax.load("demo", dtype="float32", expert_backend="native", mesh="data=8")
    expected = moejax.decode(model, PROMPTS, max_tokens=16, ignore_eos=True)
    for one, other in zip(moejax.decode(mesh, PROMPTS, max_tokens=16, ignore_eos=True), expected, strict=True):
        assert one.token_ids == other.token_ids


def test_a_layer_is_three_products_one_attention_and_one_call_for_its_experts(model: Model) -> None:
    tokens, starts, lengths = jnp.ones((2, 1), jnp.int32), jnp.zeros(2, jnp.int32), jnp.ones(2, jnp.int32)

    def forward(params: ParamTree) -> jax.Array:
        cache = empty_cache(model.config, 2, 16, "bfloat16", model.parallel)
        return model.merged(params)(tokens, starts, lengths, cache)[0]

    text = jax.jit(forward).lower(model.params).compile().as_text()
    assert text is not None
    called = re.findall(rf'custom_call_target="moejax_(\w+)_{source_hash()}"', text)
    layers = model.config.num_layers
    assert {name: called.count(name) for name in set(called)} == {
        "linear": 3 * layers,  # queries, keys and values; the output; the router
        "attend": layers,
        "experts": layers,
    }
    assert "while(" not in text
