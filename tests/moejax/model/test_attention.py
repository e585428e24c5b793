"""Attention over a cache against a plain softmax over all slots, what it visits, and the memory that prefill takes."""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from moejax.decoding import steps
from moejax.families.config import AttentionPolicy, ModelConfig
from moejax.families.kv_cache import cache_elements_per_token
from moejax.model.structure import make_structure
from moejax.ops.xla import attend
from moejax.ops.xla.attend import attend_blocks, attend_one
from tests.moejax.counting import count
from tests.moejax.feeding import GREEDY, feed_whole_batch
from tests.moejax.meshes import on_mesh

# Weighted means of values of order 1, from float32 scores of order 1: rounding of 6e-8, some dozen times.
FLOAT32_ATOL = 3e-6

# The same with weights and values rounded to 8 bits.
BFLOAT16_ATOL = 0.05

WINDOWS = (None, 1, 3, 1000)
H = 4


def plain_attention(q: Array, k: Array, v: Array, starts: np.ndarray, window: int | None) -> np.ndarray:
    """Softmax of q k / sqrt(H) over the slots that each query sees, in float64; B K G T H."""
    q64, k64, v64 = (np.asarray(array).astype(np.float64) for array in (q, k, v))
    out = np.zeros(q.shape)
    for row, kv, group, t in np.ndindex(q.shape[:4]):
        position = int(starts[row]) + t
        first = 0 if window is None else max(0, position - window + 1)
        scores = k64[row, kv, first : position + 1] @ q64[row, kv, group, t] / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[row, kv, group, t] = weights @ v64[row, kv, first : position + 1] / weights.sum()
    return out


def random_inputs(
    b: int, kv: int, g: int, t: int, s: int, dtype: str = "float32", seed: int = 0
) -> tuple[Array, Array, Array]:
    """Queries and a cache that is full: slots past a query must be masked, not be zero by chance."""
    rng = np.random.default_rng([seed, b, kv, g, t, s])

    def normal(*shape: int) -> Array:
        return jnp.asarray(rng.standard_normal(shape), dtype)

    return normal(b, kv, g, t, H), normal(b, kv, s, H), normal(b, kv, s, H)


# --- one query per row ---


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("groups", [1, 3])
def test_one_query_at_every_position(groups: int, window: int | None) -> None:
    slots = 9
    q, k, v = random_inputs(slots, 2, groups, 1, slots)
    positions = np.arange(slots, dtype=np.int32)  # row i stands at position i
    got = jax.jit(partial(attend_one, policy=AttentionPolicy(window=window)))(q, k, v, positions)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, plain_attention(q, k, v, positions, window), rtol=0, atol=FLOAT32_ATOL)


@pytest.mark.parametrize("groups", [1, 2])
def test_one_bfloat16_query_is_near_plain_attention(groups: int) -> None:
    """Also where one query head has a key/value head to itself, which is computed as two."""
    q, k, v = random_inputs(5, 2, groups, 1, 40, "bfloat16")
    positions = np.array([0, 1, 7, 20, 39], np.int32)
    got = jax.jit(partial(attend_one, policy=AttentionPolicy(window=16)))(q, k, v, positions)
    assert got.shape == q.shape and got.dtype == jnp.float32
    np.testing.assert_allclose(got, plain_attention(q, k, v, positions, 16), rtol=0, atol=BFLOAT16_ATOL)


@pytest.mark.parametrize("window", [None, 3])
def test_one_query_does_not_see_what_is_hidden(window: int | None) -> None:
    """Keys and values outside of the window or behind the query may be anything finite."""
    q, k, v = random_inputs(1, 1, 2, 1, 12)
    seen = np.arange(12) <= 6
    if window is not None:
        seen &= np.arange(12) > 6 - window
    k_other, v_other = (jnp.where(jnp.asarray(seen)[None, None, :, None], array, 1e4) for array in (k, v))
    run = jax.jit(partial(attend_one, policy=AttentionPolicy(window=window)))
    np.testing.assert_array_equal(
        run(q, k_other, v_other, np.array([6], np.int32)), run(q, k, v, np.array([6], np.int32))
    )


# --- blocks of queries and keys ---


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "QUERY_BLOCK", 4)
    monkeypatch.setattr(attend, "KEY_BLOCK", 8)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    ("groups", "t", "s"),
    [(1, 4, 8), (3, 12, 24), (2, 2, 40), (2, 7, 16), (1, 4, 4)],
    ids=["one block", "blocks", "less than a block", "no multiple of a block", "fewer slots than a block"],
)
def test_blocks_equal_plain_attention(groups: int, t: int, s: int, window: int | None) -> None:
    """Rows start anywhere, so queries and windows end at, before and after the borders of blocks."""
    rows = 6
    q, k, v = random_inputs(rows, 2, groups, t, s)
    run = jax.jit(partial(attend_blocks, policy=AttentionPolicy(window=window)))
    room = s - t
    for starts in (
        np.zeros(rows, np.int32),
        np.linspace(0, room, rows).astype(np.int32),
        np.full(rows, room, np.int32),
    ):
        got = np.asarray(run(q, k, v, starts))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, plain_attention(q, k, v, starts, window), rtol=0, atol=FLOAT32_ATOL)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", [None, 3])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_blocks_with_any_starts(window: int | None, data: st.DataObject) -> None:
    starts = np.array(data.draw(st.lists(st.integers(0, 12), min_size=3, max_size=3)), np.int32)
    q, k, v = random_inputs(3, 1, 2, 12, 24, seed=data.draw(st.integers(0, 9)))
    got = _compiled_blocks(window)(q, k, v, starts)
    np.testing.assert_allclose(got, plain_attention(q, k, v, starts, window), rtol=0, atol=FLOAT32_ATOL)


_BLOCKS: dict[int | None, jax.stages.Wrapped] = {}


def _compiled_blocks(window: int | None) -> jax.stages.Wrapped:
    """One function for all examples, so that it compiles once; called with the small blocks set."""
    assert (attend.QUERY_BLOCK, attend.KEY_BLOCK) == (4, 8)
    return _BLOCKS.setdefault(window, jax.jit(partial(attend_blocks, policy=AttentionPolicy(window=window))))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("scale", [1e-2, 30.0])
def test_running_softmax_keeps_its_accuracy(scale: float) -> None:
    """Scores that differ by hundreds between key blocks, rising or falling: nothing overflows, nothing is lost."""
    q, k, v = random_inputs(2, 1, 1, 4, 32)
    k = k * jnp.linspace(scale, 1.0, 32)[None, None, :, None]
    starts = np.array([28, 20], np.int32)
    got = jax.jit(partial(attend_blocks, policy=AttentionPolicy(window=None)))(q * 10, k, v, starts)
    # Scores up to 600 in float32 have absolute errors up to 4e-5, which weights of order 1 take over.
    np.testing.assert_allclose(got, plain_attention(q * 10, k, v, starts, None), rtol=0, atol=1e-4)


def test_bfloat16_is_near_plain_attention() -> None:
    q, k, v = random_inputs(2, 2, 2, 128, 256, "bfloat16")
    starts = np.array([0, 128], np.int32)
    got = jax.jit(partial(attend_blocks, policy=AttentionPolicy(window=50)))(q, k, v, starts)
    np.testing.assert_allclose(got, plain_attention(q, k, v, starts, 50), rtol=0, atol=BFLOAT16_ATOL)


@pytest.mark.parametrize("window", [None, 100])
def test_blocks_of_the_real_size(window: int | None) -> None:
    """Two query blocks against three key blocks, one row in the middle of a block."""
    q, k, v = random_inputs(2, 1, 2, 256, 384)
    starts = np.array([0, 77], np.int32)
    got = jax.jit(partial(attend_blocks, policy=AttentionPolicy(window=window)))(q, k, v, starts)
    np.testing.assert_allclose(got, plain_attention(q, k, v, starts, window), rtol=0, atol=FLOAT32_ATOL)


# --- what is visited ---


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", [None, 1, 5, 8, 9, 1000])
@pytest.mark.parametrize("starts", [[0], [3], [20], [0, 16]])
def test_only_visible_key_blocks_are_visited(starts: list[int], window: int | None) -> None:
    """Products executed: one of scores and one of values for each key block that some query of a query block sees."""
    b, kv, g, t, s = len(starts), 2, 3, 12, 32
    q, k, v = random_inputs(b, kv, g, t, s)
    visited = 0
    for block in range(t // 4):
        lowest, highest = min(starts) + block * 4, max(starts) + block * 4 + 3
        first = 0 if window is None else max(0, lowest - window + 1) // 8
        visited += highest // 8 - first + 1
    counts = count(
        partial(attend_blocks, policy=AttentionPolicy(window=window)), q, k, v, jnp.asarray(starts, jnp.int32)
    )
    assert counts.flops == visited * 2 * (2 * b * kv * g * 4 * 8 * H)


@pytest.mark.usefixtures("small_blocks")
def test_key_blocks_that_no_query_sees_may_hold_nan() -> None:
    """In the compiled program: before the window of the first query, and behind the last query."""
    q, k, v = random_inputs(1, 1, 2, 8, 40)
    starts, window = np.array([17], np.int32), 2
    seen = (np.arange(40) >= 16) & (np.arange(40) < 32)  # whole blocks that hold slots 16 to 24
    run = jax.jit(partial(attend_blocks, policy=AttentionPolicy(window=window)))
    k_other, v_other = (jnp.where(jnp.asarray(seen)[None, None, :, None], array, jnp.nan) for array in (k, v))
    np.testing.assert_array_equal(run(q, k_other, v_other, starts), run(q, k, v, starts))


# --- memory of prefill ---


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """Temporary memory of a compiled prefill of `tokens` tokens per call into a cache of `slots`."""

    tokens: int
    slots: int
    temp_bytes: int


MANY_HEADS = ModelConfig(
    vocab_size=64,
    embed_dim=32,
    num_layers=2,
    num_heads=16,
    num_kv_heads=4,
    head_dim=8,
    num_experts=4,
    experts_per_token=2,
    expert_dim=48,
    max_position_embeddings=4096,
)


ONE_DEVICE = on_mesh(MANY_HEADS)


def compiled_prefill(tokens: int, slots: int) -> Prefill:
    """Compiles, without running it, the program that feeds one prompt."""
    structure = make_structure(MANY_HEADS, "blocked", "bfloat16", ONE_DEVICE)
    fed, state, feed = feed_whole_batch(MANY_HEADS, ONE_DEVICE, prompts=1, width=tokens, length=slots)
    program = jax.jit(
        lambda params, *args: steps.extend(structure.merged(params), GREEDY, fed, *args), donate_argnums=1
    ).lower(structure.shapes(), state, feed)
    memory = program.compile().memory_analysis()
    assert memory is not None
    return Prefill(tokens=tokens, slots=slots, temp_bytes=memory.temp_size_in_bytes)


@pytest.fixture(scope="module")
def prefills() -> list[Prefill]:
    return [compiled_prefill(tokens, tokens) for tokens in (512, 1024, 2048)]


def test_memory_of_prefill_grows_linearly(prefills: list[Prefill]) -> None:
    """Twice the prompt, at most twice the memory (and a little); three points on one line, not on a parabola."""
    short, middle, long = (one.temp_bytes for one in prefills)
    assert short < middle < long
    assert middle <= 2.2 * short
    assert long <= 2.2 * middle
    assert long - middle <= 2.2 * (middle - short)


def test_memory_of_prefill_is_far_below_a_matrix_of_scores(prefills: list[Prefill]) -> None:
    for one in prefills:
        scores = one.tokens * one.slots * MANY_HEADS.num_heads * 4
        assert one.temp_bytes < scores / 4
    assert prefills[-1].temp_bytes < prefills[-1].tokens ** 2 * MANY_HEADS.num_heads * 4 / 25


def test_memory_of_one_part_hardly_depends_on_the_whole(prefills: list[Prefill]) -> None:
    """A prompt longer than one call feeds is fed in parts: a cache twice as long takes at most its own bytes more."""
    part = compiled_prefill(2048, 4096)
    cache_bytes = 4096 * cache_elements_per_token(MANY_HEADS) * 2
    assert part.temp_bytes <= prefills[-1].temp_bytes + cache_bytes
