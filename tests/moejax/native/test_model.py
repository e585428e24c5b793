"""The whole model on the compiled kernels: what it promises beyond the other backends, and how it calls them."""

import re
from functools import partial

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


def test_a_row_has_the_same_bits_in_any_batch_and_however_its_tokens_are_fed(model: Model) -> None:
    """Alone or among others, a prompt at once, in parts, or token by token."""
    tokens = np.random.default_rng(0).integers(3, model.config.vocab_size, (16, 21)).astype(np.int32)

    @partial(jax.jit, static_argnums=2)
    def logits(params: ParamTree, tokens: jax.Array, widths: tuple[int, ...]) -> jax.Array:
        mixtral, rows = model.merged(params), tokens.shape[0]
        cache = empty_cache(model.config, rows, 32, "bfloat16", model.parallel)
        parts, start = [], 0
        for width in widths:
            starts, lengths = jnp.full(rows, start, jnp.int32), jnp.full(rows, width, jnp.int32)
            hidden, cache, _ = mixtral(tokens[:, start : start + width], starts, lengths, cache)
            parts.append(mixtral.logits(hidden))
            start += width
        return jnp.concatenate(parts, axis=1)

    together = np.array(logits(model.params, tokens, (21,)))
    for rows, widths in ((slice(0, 1), (21,)), (slice(7, 8), (20, 1)), (slice(5, 8), (7, 13, 1)), (slice(16), (20, 1))):
        np.testing.assert_array_equal(logits(model.params, tokens[rows], widths), together[rows])


def test_greedy_tokens_of_a_prompt_are_the_same_in_a_batch_and_alone(model: Model) -> None:
    together = moejax.decode(model, PROMPTS, max_tokens=24, ignore_eos=True)
    for prompt, expected in zip(PROMPTS, together, strict=True):
        (alone,) = moejax.decode(model, [prompt], max_tokens=24, ignore_eos=True)
        assert alone.token_ids == expected.token_ids


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
