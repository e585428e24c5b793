"""The key/value cache: what is written where, and that writing moves bits only."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array, lax

from moejax._sharding import check_logical_axes
from moejax.families.config import ModelConfig
from moejax.families.kv_cache import CACHE_AXES, cache_elements_per_token
from moejax.model.cache import KVCache, LayerCache, empty_cache, put_sequences, take_sequences
from moejax.ops.xla.rotate import write_positions
from moejax.runtime.bits import to_bits
from tests.moejax.compiled import made
from tests.moejax.meshes import on_mesh

CONFIG = ModelConfig(
    vocab_size=16,
    embed_dim=8,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    num_experts=2,
    experts_per_token=1,
    expert_dim=8,
    max_position_embeddings=64,
)
ONE_DEVICE = on_mesh(CONFIG)
K, H = CONFIG.num_kv_heads, CONFIG.head_dim
DTYPES = ("bfloat16", "float16", "float32")

dtypes = pytest.mark.parametrize("dtype", DTYPES)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def filled(batch: int, length: int, dtype: str = "float32", seed: int = 0) -> KVCache:
    """A cache with random numbers in every slot, other ones in each layer."""
    shape, starts = (batch, K, length, H), jnp.zeros((batch,), jnp.int32)
    return tuple(
        write(
            layer,
            jnp.asarray(normal(*shape, seed=seed + 2 * i)),
            jnp.asarray(normal(*shape, seed=seed + 2 * i + 1)),
            starts,
        )
        for i, layer in enumerate(empty_cache(CONFIG, batch, length, dtype, ONE_DEVICE))
    )


def write(layer: LayerCache, k: Array, v: Array, starts: Array) -> LayerCache:
    """What attention does with new keys and values [B, K, T, H] once keys are rotated."""
    keys, values = (
        write_positions(cache, to_bits(new, layer.dtype), starts) for cache, new in ((layer.k, k), (layer.v, v))
    )
    return replace(layer, k=keys, v=values)


@dtypes
def test_empty_cache(dtype: str) -> None:
    cache = empty_cache(CONFIG, 3, 10, dtype, ONE_DEVICE)
    assert len(cache) == CONFIG.num_layers
    for layer in cache:
        assert layer.length == 10
        for array in (layer.keys(), layer.values()):
            assert array.shape == (3, K, 10, H)
            assert array.dtype == jnp.dtype(dtype)
            np.testing.assert_array_equal(array.astype(jnp.float32), np.zeros(array.shape))


def test_axes_name_the_arrays() -> None:
    cache = empty_cache(CONFIG, 3, 10, "bfloat16", ONE_DEVICE)
    check_logical_axes(CACHE_AXES, cache[0].k.shape)
    assert cache[0].k.shape == (3, CONFIG.num_kv_heads, 10, CONFIG.head_dim)
    assert CACHE_AXES == ("batch", "kv_heads", "sequence", "head_dim")


def test_one_token_takes_as_many_elements_as_the_config_says() -> None:
    cache = empty_cache(CONFIG, 3, 10, "bfloat16", ONE_DEVICE)
    assert sum(array.size for array in jax.tree.leaves(cache)) == 3 * 10 * cache_elements_per_token(CONFIG)


@dtypes
def test_what_is_stored_is_16_bits_wide_when_the_dtype_is(dtype: str) -> None:
    layer = empty_cache(CONFIG, 1, 4, dtype, ONE_DEVICE)[0]
    assert layer.k.dtype == layer.v.dtype == (jnp.float32 if dtype == "float32" else jnp.uint16)
    assert layer.k.dtype.itemsize == jnp.dtype(dtype).itemsize


run_write = jax.jit(lambda layer, k, v, starts: write(layer, k, v, starts))


@settings(max_examples=40, deadline=None)
@given(starts=st.lists(st.integers(0, 7), min_size=3, max_size=3), seed=st.integers(0, 9))
def test_write_fills_the_slots_from_each_rows_start(starts: list[int], seed: int) -> None:
    layer = filled(3, 10, seed=seed)[0]
    k, v = normal(3, K, 3, H, seed=seed + 50), normal(3, K, 3, H, seed=seed + 60)
    expected_k, expected_v = np.array(layer.keys()), np.array(layer.values())
    for row, start in enumerate(starts):
        expected_k[row, :, start : start + 3], expected_v[row, :, start : start + 3] = k[row], v[row]
    got = run_write(layer, jnp.asarray(k), jnp.asarray(v), np.array(starts, np.int32))
    np.testing.assert_array_equal(got.keys(), expected_k)
    np.testing.assert_array_equal(got.values(), expected_v)


# Every pattern of 16 bits, or of the upper half of 32, is a number of its own: zeros, subnormals, infinities, NaN.
ALL_PATTERNS = np.arange(1 << 16, dtype=np.uint16)


@dtypes
def test_every_bit_pattern_comes_back(dtype: str) -> None:
    if dtype == "float32":
        bits: Array = jnp.asarray(ALL_PATTERNS.astype(np.uint32) << 16)
    else:
        bits = jnp.asarray(ALL_PATTERNS)
    values = lax.bitcast_convert_type(bits, jnp.dtype(dtype)).reshape(1, 1, -1, 64)
    shape = values.shape
    stored = jnp.uint16 if dtype != "float32" else jnp.float32
    layer = LayerCache(k=jnp.zeros(shape, stored), v=jnp.zeros(shape, stored), dtype=dtype)
    got = run_write(layer, values, -values, np.zeros(1, np.int32))
    np.testing.assert_array_equal(lax.bitcast_convert_type(got.keys(), bits.dtype).ravel(), bits)
    np.testing.assert_array_equal(
        lax.bitcast_convert_type(got.values(), bits.dtype).ravel(),
        lax.bitcast_convert_type(-values, bits.dtype).ravel(),
    )


@dtypes
def test_write_rounds_float32_to_the_caches_dtype(dtype: str) -> None:
    """Keys arrive in float32 after the rotation."""
    k = normal(1, K, 4, H)
    layer = run_write(
        empty_cache(CONFIG, 1, 4, dtype, ONE_DEVICE)[0], jnp.asarray(k), jnp.asarray(2 * k), np.zeros(1, np.int32)
    )
    np.testing.assert_array_equal(np.asarray(layer.keys()), k.astype(jnp.dtype(dtype)))
    np.testing.assert_array_equal(np.asarray(layer.values()), (2 * k).astype(jnp.dtype(dtype)))


# --- copying sequences ---

run_put = jax.jit(put_sequences)


@pytest.mark.parametrize("length", [6, 10], ids=["shorter", "as long"])
@pytest.mark.parametrize(
    "slots", [[2, 0], [1, 3], [4, 4], [9, 2]], ids=["both", "one past the end", "all past the end", "far past the end"]
)
def test_put_sequences(slots: list[int], length: int) -> None:
    target, source = filled(3, 10), filled(2, length, seed=20)
    got = run_put(target, source, np.array(slots, np.int32))
    for into, new, layer in zip(target, source, got, strict=True):
        for before, given_, after in ((into.k, new.k, layer.k), (into.v, new.v, layer.v)):
            expected = np.array(before)
            for i, slot in enumerate(slots):
                if slot < 3:
                    expected[slot, :, :length] = np.asarray(given_)[i]
            np.testing.assert_array_equal(after, expected)


@dtypes
def test_sequences_of_every_dtype(dtype: str) -> None:
    target, source = filled(2, 6, dtype), filled(1, 4, dtype, seed=9)
    got = run_put(target, source, np.array([1], np.int32))
    back = take_sequences(got, jnp.array([1, 0], jnp.int32), 4)
    for into, new, layer, taken in zip(target, source, got, back, strict=True):
        assert layer.dtype == taken.dtype == dtype
        np.testing.assert_array_equal(taken.keys()[0], new.keys()[0])
        np.testing.assert_array_equal(taken.values()[1], into.values()[0, :, :4])
        np.testing.assert_array_equal(layer.keys()[1, :, 4:], into.keys()[1, :, 4:])


# --- what the compiled write does ---

LOOPED = (2, 2, 44, 8)  # B K S H: no other array has as many elements


def looped_write(layer: LayerCache) -> LayerCache:
    """Writes a token into each of the first slots, as decoding does."""

    def step(carry: tuple[Array, LayerCache]) -> tuple[Array, LayerCache]:
        i, layer = carry
        token = jnp.broadcast_to(i.astype(jnp.float32), (LOOPED[0], LOOPED[1], 1, LOOPED[3]))
        return i + 1, write(layer, token, -token, jnp.broadcast_to(i, (LOOPED[0],)))

    return lax.while_loop(lambda carry: carry[0] < 20, step, (jnp.zeros((), jnp.int32), layer))[1]


def whole_caches_made(dtype: str) -> list[str]:
    """Types of the arrays as large as the cache that the compiled loop makes."""
    arrays = jnp.zeros(LOOPED, empty_cache(CONFIG, 1, 1, dtype, ONE_DEVICE)[0].k.dtype)
    layer = LayerCache(k=arrays, v=arrays, dtype=dtype)
    # A function of its own, because one that was traced before would not be traced again.
    program = jax.jit(lambda layer: looped_write(layer), donate_argnums=0).lower(layer).compile().as_text()
    assert program is not None
    return [array.dtype for _, array in made(program) if array.size == arrays.size]


@dtypes
def test_write_in_a_loop_converts_and_copies_no_cache(dtype: str) -> None:
    """Two updates in place, of keys and of values, and nothing else."""
    stored = "f32" if dtype == "float32" else "u16"
    assert whole_caches_made(dtype) == [stored, stored]


def test_a_cache_of_bfloat16_instead_of_bits_would_be_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap that the bits avoid: XLA:CPU converts all of the cache to float32 and back, until JAX 0.12."""
    for module in ("runtime.bits", "model.cache"):
        monkeypatch.setattr(f"moejax.{module}.stored_dtype", lambda dtype: jnp.dtype(dtype))
    found = whole_caches_made("bfloat16")
    if jax.__version_info__ >= (0, 12):
        assert found == ["bf16", "bf16"]
    else:
        assert found.count("f32") >= 2 and found.count("bf16") >= 2
