"""Attention on meshes against one device: every way to split heads, for prompts and for single tokens."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from moejax.families.config import ModelConfig
from moejax.model.attention import Attention
from moejax.model.cache import KVCache, empty_cache
from moejax.model.params import merge, split
from moejax.model.rotary import rotation
from moejax.moe.parallel import Parallel
from moejax.weights.declarations import CACHE_AXES
from tests.moejax.meshes import made_params, on_mesh

B, T, S, D, H = 8, 6, 12, 24, 4
PROMPTS = np.array([6, 1, 3, 6, 2, 5, 4, 6], np.int32)  # lengths; decoding goes on from there
DECODED = 3

# Outputs of order 1, sums of up to 24 x H products in up to 8 parts: float32 rounds each to 6e-8.
FLOAT32_ATOL = 4e-6

# N, K, mesh, dispatch, and what a device has then: query heads, key/value heads.
SPLITS = [
    (8, 8, "expert=4,tensor=2", "replicated", 1, 1),
    (8, 2, "expert=4,tensor=2", "replicated", 1, 1),  # four devices share a key/value head
    (8, 1, "expert=4,tensor=2", "replicated", 1, 1),  # all do
    (8, 4, "expert=2,tensor=2", "replicated", 2, 1),
    (8, 2, "tensor=8", "replicated", 1, 2),  # part of a group, out of all key/value heads
    (16, 4, "tensor=8", "replicated", 2, 4),
    (16, 2, "expert=2,tensor=4", "replicated", 2, 1),
    (12, 3, "tensor=4", "replicated", 3, 3),  # groups of 4 cut into 3: a key/value head per query head
    (6, 2, "tensor=3", "replicated", 2, 2),
    (12, 3, "expert=4", "replicated", 3, 3),
    (24, 6, "expert=4,tensor=2", "replicated", 3, 3),  # cut, and only half of the key/value heads are here
    (12, 2, "expert=3,tensor=2", "replicated", 2, 1),
    (5, 5, "expert=4,tensor=2", "replicated", 5, 5),  # nothing divides: all heads on every device
    (8, 4, "data=2,expert=2,tensor=2", "replicated", 2, 1),
    (8, 4, "data=2,expert=2,tensor=2", "gather", 4, 2),
    (8, 1, "expert=4,tensor=2", "all_to_all", 4, 1),
    (12, 3, "expert=2,tensor=4", "gather", 3, 3),
    (3, 1, "data=2,expert=4", "all_to_all", 3, 1),
]
splits = pytest.mark.parametrize(("n", "k", "mesh", "dispatch", "queries", "keys"), SPLITS)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Outputs of a prompt [B, T, D] and of single tokens [DECODED, B, D], and the cache after all of them."""

    prompt: np.ndarray
    decoded: np.ndarray
    cache: KVCache
    parallel: Parallel


def config_of(n: int, k: int, window: int | None) -> ModelConfig:
    return ModelConfig(
        vocab_size=8,
        embed_dim=D,
        num_layers=1,
        num_heads=n,
        num_kv_heads=k,
        head_dim=H,
        num_experts=24,
        experts_per_token=1,
        expert_dim=24,
        max_position_embeddings=64,
        sliding_window=window,
    )


@cache
def run(n: int, k: int, mesh: str | None, dispatch: str, window: int | None) -> Run:
    """Feeds prompts of different lengths, then token after token, each row at a position of its own."""
    config = config_of(n, k, window)
    parallel = on_mesh(config, mesh, dispatch)
    graphdef, abstract = split(Attention(config, parallel, dtype="float32"))
    params = made_params(abstract, config, 0, parallel)

    @jax.jit
    def attend(params: Any, x: jax.Array, starts: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        positions = starts[:, None] + jax.numpy.arange(x.shape[1])[None, :]
        attention = merge(graphdef, abstract, params)
        y, layer = attention(parallel.constrain(x, "batch"), rotation(positions, H, 1e4), starts, cache[0])
        return y, (layer,)

    rng = np.random.default_rng(0)
    prompt, tokens = (rng.standard_normal((rows, B, t, D)).astype(np.float32) for rows, t in ((1, T), (DECODED, 1)))
    cache = empty_cache(config, B, S, "float32", parallel)
    y, cache = attend(params, prompt[0], np.zeros(B, np.int32), cache)
    decoded = []
    for step, token in enumerate(tokens):
        one, cache = attend(params, token, PROMPTS + np.int32(step), cache)
        decoded.append(np.asarray(one)[:, 0])
    return Run(prompt=np.asarray(y), decoded=np.stack(decoded), cache=cache, parallel=parallel)


@splits
def test_equals_one_device(n: int, k: int, mesh: str, dispatch: str, queries: int, keys: int) -> None:
    check_equal(n, k, mesh, dispatch, None)


@pytest.mark.parametrize(("n", "k", "mesh", "dispatch", "queries", "keys"), SPLITS[1::5])
def test_a_sliding_window_too(n: int, k: int, mesh: str, dispatch: str, queries: int, keys: int) -> None:
    check_equal(n, k, mesh, dispatch, 4)


def check_equal(n: int, k: int, mesh: str, dispatch: str, window: int | None) -> None:
    """Outputs and the cache's contents."""
    got, expected = run(n, k, mesh, dispatch, window), run(n, k, None, "replicated", window)
    np.testing.assert_allclose(got.prompt, expected.prompt, rtol=0, atol=FLOAT32_ATOL)
    np.testing.assert_allclose(got.decoded, expected.decoded, rtol=0, atol=FLOAT32_ATOL)
    for name in ("k", "v"):
        on_mesh_, alone = (np.asarray(getattr(one.cache[0], name)) for one in (got, expected))
        assert np.abs(alone[:, :, : T + 1]).min(axis=3).max() > 0.1, "a cache that is empty would be equal too"
        np.testing.assert_allclose(on_mesh_, alone, rtol=0, atol=FLOAT32_ATOL)


@splits
def test_each_device_has_its_heads(n: int, k: int, mesh: str, dispatch: str, queries: int, keys: int) -> None:
    """And the cache stays where caches live, after prompts and after tokens."""
    one = run(n, k, mesh, dispatch, None)
    rules = one.parallel.rules
    assert (n // rules.parts("q_heads"), k // rules.parts("kv_heads")) == (queries, keys)
    for array in (one.cache[0].k, one.cache[0].v):
        assert array.sharding.is_equivalent_to(one.parallel.sharding(*CACHE_AXES), 4)
        assert {shard.data.shape for shard in array.addressable_shards} == {(B // rules.parts("batch"), keys, S, H)}


def test_a_window_hides_something() -> None:
    whole, windowed = (run(8, 2, None, "replicated", window) for window in (None, 4))
    assert np.abs(whole.prompt - windowed.prompt).max() > 0.05
    assert np.abs(whole.decoded - windowed.decoded).max() > 0.05
