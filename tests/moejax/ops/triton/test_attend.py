"""Attention, rotary embeddings into the cache and products of few rows: as the references, and nothing more is read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.families.config import AttentionPolicy
from moejax.ops import reference
from moejax.ops.triton.attend import attend, attend_pages
from moejax.ops.triton.blocks import HOPPER_SHARED_MEMORY, attend_block, key_splits
from moejax.ops.triton.few_tokens import MOST_TOKENS
from moejax.ops.triton.norm import add_norm
from moejax.ops.triton.project import project
from moejax.ops.triton.rotate import rotate_into_cache
from moejax.ops.xla.rotate import rotate_into_cache as rotate_in_xla
from tests.moejax.ops.triton.cases import FLOAT32_ATOL, normal

# (B K G T H S), window: one query with and without parts, groups and widths that are no powers of two, several blocks.
SHAPES = {
    "one query, in parts": ((2, 2, 4, 1, 32, 256), None),
    "one query, a window": ((2, 2, 3, 1, 24, 300), 50),
    "one query, few positions": ((1, 1, 1, 1, 16, 20), None),
    "a prompt": ((2, 1, 4, 33, 16, 64), None),
    "a prompt, a window": ((1, 2, 1, 70, 32, 200), 17),
    "all heads share one": ((1, 1, 32, 9, 16, 32), None),
}


@functools.cache
def interpreted(window: int | None):
    return jax.jit(functools.partial(attend, policy=AttentionPolicy(window=window), interpret=True))


def inputs(b: int, kv: int, g: int, t: int, h: int, s: int, dtype: str = "float32") -> tuple[jax.Array, ...]:
    q, k, v = (
        normal(b, kv, g, t, h, dtype=dtype),
        normal(b, kv, s, h, dtype=dtype),
        normal(b, kv, s, h, seed=1, dtype=dtype),
    )
    starts = np.random.default_rng(b).integers(0, s - t + 1, b)
    return q, k, v, jnp.asarray(starts, jnp.int32)


@pytest.mark.parametrize(("sizes", "window"), SHAPES.values(), ids=SHAPES)
def test_attention_is_the_reference_s_and_reads_only_what_is_seen(
    sizes: tuple[int, int, int, int, int, int], window: int | None
) -> None:
    q, k, v, starts = inputs(*sizes)
    t, s = q.shape[3], k.shape[2]
    seen = jnp.arange(s)[None, :] < starts[:, None] + t
    if window is not None:
        seen &= jnp.arange(s)[None, :] > starts[:, None] - window
    poison = [jnp.where(seen[:, None, :, None], a, jnp.nan) for a in (k, v)]
    expected = reference.attend(q, k, v, starts, AttentionPolicy(window=window))
    np.testing.assert_allclose(interpreted(window)(q, *poison, starts), expected, atol=FLOAT32_ATOL)


def test_16_bits_stay_and_a_sequence_does_not_depend_on_the_others() -> None:
    q, k, v, starts = inputs(3, 2, 4, 1, 32, 256, "bfloat16")
    y = interpreted(None)(q, k, v, starts)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(y, np.float32), reference.attend(q, k, v, starts, AttentionPolicy()), atol=2e-2
    )
    alone = interpreted(None)(q[1:2], k[1:2], v[1:2], starts[1:2])
    np.testing.assert_array_equal(y[1:2], alone)


@pytest.mark.parametrize("t", [1, 20])
def test_pages_in_any_order(t: int) -> None:
    """Position p of sequence b is in page pages[b, p // S]; what is in other pages, NaN here, does not matter."""
    b, kv, g, h, page, each = 2, 1, 2, 16, 64, 3
    q, k, v, starts = inputs(b, kv, g, t, h, page * each)
    pages = np.random.default_rng(0).permutation(8)[: b * each].reshape(b, each)

    def paged(a: jax.Array) -> jax.Array:
        pieces = np.asarray(a).reshape(b, kv, each, page, h).swapaxes(1, 2)
        everywhere = np.full((8, kv, page, h), np.nan, np.float32)
        everywhere[pages] = pieces
        return jnp.asarray(everywhere)

    y = attend_pages(q, paged(k), paged(v), jnp.asarray(pages), starts, AttentionPolicy(), interpret=True)
    np.testing.assert_allclose(y, reference.attend(q, k, v, starts, AttentionPolicy()), atol=FLOAT32_ATOL)


def test_pages_that_are_no_whole_blocks_are_refused() -> None:
    q, k, v, starts = inputs(1, 1, 1, 1, 16, 40)
    with pytest.raises(ValueError, match="40 positions"):
        attend_pages(q, k, v, jnp.zeros((1, 2), jnp.int32), starts, AttentionPolicy(), interpret=True)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("shared", [99 * 1024, 163 * 1024, HOPPER_SHARED_MEMORY])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("heads", [1, 4, 6, 48])
@pytest.mark.parametrize("queries", [1, 7, 2048])
def test_blocks_of_attention_fit(queries: int, heads: int, width: int, shared: int, itemsize: int) -> None:
    block = attend_block(heads, queries, width, 4096, itemsize, shared)
    assert block.shared_memory_bytes <= shared and block.rows >= min(16, heads)
    assert block.rows >= block.queries * heads


def test_keys_are_divided_until_there_is_enough_to_do() -> None:
    assert (
        key_splits(8, 64) * 8 >= 256 and key_splits(1024, 64) == 1 and key_splits(8, 3) == 2 and key_splits(1, 1) == 1
    )


@pytest.mark.parametrize(
    ("b", "t", "n", "kv", "h", "s", "dtype"),
    [
        (2, 1, 4, 2, 8, 16, "float32"),
        (3, 5, 4, 2, 12, 16, "bfloat16"),
        (1, 40, 3, 1, 64, 64, "bfloat16"),
        (2, 3, 2, 1, 8, 3, "float32"),  # starts past the end, as padded calls have them
    ],
)
def test_rotated_into_the_cache_bit_for_bit(b: int, t: int, n: int, kv: int, h: int, s: int, dtype: str) -> None:
    q, k, v = normal(b, t, n, h), normal(b, t, kv, h, seed=1), normal(b, t, kv, h, seed=2)
    cos, sin = normal(b, t, h // 2, seed=3), normal(b, t, h // 2, seed=4)
    random = np.random.default_rng(0)
    caches = [
        jnp.asarray(random.integers(0, 2**15, (b, kv, s, h)), "uint16" if dtype == "bfloat16" else dtype)
        for _ in range(2)
    ]
    starts = jnp.asarray(random.integers(0, s - t + 3, b), jnp.int32)
    args = (q, k, v, cos, sin, starts, *caches)
    results = jax.jit(functools.partial(rotate_into_cache, dtype=dtype, interpret=True))(*args)
    for ours, theirs in zip(results, jax.jit(functools.partial(rotate_in_xla, dtype=dtype))(*args), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "width"), [(1, 40), (5, 1024), (0, 8)])
def test_the_sum_and_its_norm(rows: int, width: int, dtype: str) -> None:
    x, added, scale = (normal(*shape, dtype=dtype) for shape in ((rows, width), (rows, width), (width,)))
    for summand in (added, None):
        ours = jax.jit(functools.partial(add_norm, eps=1e-5, interpret=True))(x, summand, scale)
        theirs = jax.jit(functools.partial(reference.add_norm, eps=1e-5))(x, summand, scale)
        np.testing.assert_array_equal(ours[0], theirs[0])
        atol = FLOAT32_ATOL if dtype == "float32" else 0.04  # one rounding to 8 bits of numbers up to about 4
        np.testing.assert_allclose(np.asarray(ours[1], np.float32), np.asarray(theirs[1], np.float32), atol=atol)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 40, (8,)), (5, 300, (33, 8, 8)), (MOST_TOKENS, 16, (100,))]
)
def test_products_of_few_rows(rows: int, inputs: int, outputs: tuple[int, ...]) -> None:
    x, weights = normal(rows, inputs), [normal(size, inputs) / inputs**0.5 for size in outputs]
    results = jax.jit(functools.partial(project, interpret=True))(x, *weights)
    for ours, theirs in zip(results, reference.project(x, *weights), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=FLOAT32_ATOL)


def test_products_in_16_bits_are_rounded_once() -> None:
    x, weight = normal(3, 64, dtype="bfloat16"), normal(9, 64, dtype="bfloat16")
    (y,) = jax.jit(functools.partial(project, dtype=jnp.bfloat16, interpret=True))(x, weight)
    (exact,) = jax.jit(functools.partial(project, interpret=True))(x, weight)
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


def test_products_of_more_rows_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=str(MOST_TOKENS)):
        project(normal(MOST_TOKENS + 1, 8), normal(4, 8), interpret=True)
