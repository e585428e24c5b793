"""The kernels compiled and run by a GPU, against float64, on inputs that are new each time.

`pytest -m gpu tests/moejax/ops/triton` on a machine with a GPU of compute capability 8.0 or more.
"""

import secrets
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.families.config import AttentionPolicy
from moejax.ops.expert import Expert
from moejax.ops.table import BACKENDS
from moejax.ops.triton.experts import pallas_attend, pallas_rotate, pallas_route
from moejax.ops.triton.kernels import KERNELS
from moejax.ops.xla.rotate import rotate_into_cache
from moejax.runtime.platform import current_device
from tests.moejax.moe.oracle import Layer, moe_loop, route_loop
from tests.moejax.ops.triton.cases import top

pytestmark = pytest.mark.gpu

# T E A D F: both forms of the decode kernels and their edges, prefill in blocks of 16, 64 and 128 rows, numbers of
# experts that are no power of two, sizes that divide into no block.
SHAPES = [
    (1, 8, 2, 512, 1792),
    (1, 60, 4, 200, 328),
    (2, 8, 2, 512, 1792),
    (17, 5, 1, 200, 328),
    (64, 8, 2, 512, 1792),
    (65, 60, 4, 200, 328),
    (300, 8, 2, 512, 1792),
    (1000, 8, 2, 512, 1792),
]
# float32 sums of up to 1,792 products of order 1 / sqrt(1792); bfloat16 rounds the hidden values to 8 bits.
ATOL = {"float32": 2e-5, "bfloat16": 0.03}


@pytest.fixture
def rng() -> np.random.Generator:
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # shown when a test fails
    return np.random.default_rng(seed)


def poison_free_memory() -> None:
    """Leaves NaN in memory that the next outputs may get: a place that a kernel forgets to write shows."""
    arrays = [
        jnp.full((size,), jnp.nan, jnp.float32) for size in (1 << 12, 1 << 16, 1 << 20, 1 << 24) for _ in range(8)
    ]
    jax.block_until_ready(arrays)
    for array in arrays:
        array.delete()


def test_this_is_the_gpu() -> None:
    assert KERNELS["triton"].cannot(current_device()) is None


@pytest.mark.parametrize("dtype", ATOL)
@pytest.mark.parametrize(("t", "e", "a", "d", "f"), SHAPES)
def test_layer_equals_float64(t: int, e: int, a: int, d: int, f: int, dtype: str, rng: np.random.Generator) -> None:
    """Route and experts, with padding tokens, and NaN in the weights of experts that nobody chose."""
    valid = rng.random(t) < 0.9
    logits = rng.standard_normal((t, e)).astype(np.float32)
    logits[:, : e // 3] -= 20  # some experts get no token
    routing = route_loop(logits, valid, a)
    x = jnp.asarray(rng.standard_normal((t, d)), dtype)

    def matrix(rows: int, columns: int, used: bool) -> jax.Array:
        values = rng.standard_normal((rows, columns)) * columns**-0.5
        return jnp.asarray(values if used else np.full_like(values, np.nan), dtype)

    used = np.isin(np.arange(e), np.asarray(routing.experts))
    layer = Layer(experts=[Expert(matrix(f, d, u), matrix(f, d, u), matrix(d, f, u)) for u in used])
    poison_free_memory()
    ours = jax.jit(lambda logits, valid: pallas_route(logits, valid, top(a)))(logits, valid)
    np.testing.assert_array_equal(ours.experts, routing.experts)
    np.testing.assert_allclose(ours.weights, routing.weights, rtol=0, atol=1e-5)
    run = jax.jit(BACKENDS["pallas"].apply)
    got = run(layer.stacked, x, ours)
    np.testing.assert_allclose(got, moe_loop(layer, np.asarray(x), routing), rtol=0, atol=ATOL[dtype])
    np.testing.assert_array_equal(run(layer.stacked, x, ours), got, err_msg="the same call gave other bits")


@pytest.mark.parametrize(("t", "e", "a"), [(1, 2, 1), (64, 8, 2), (5000, 8, 2), (777, 128, 4)])
def test_route_and_ranks(t: int, e: int, a: int, rng: np.random.Generator) -> None:
    """With ties (small integers), broken rows and padding; ranks and counts against their specification."""
    logits = rng.integers(-3, 4, (t, e)).astype(np.float32)
    logits[rng.random(t) < 0.1] = np.nan
    valid = rng.random(t) < 0.9
    poison_free_memory()
    got = jax.jit(lambda logits, valid: KERNELS["triton"].route(logits, valid, top(a)))(logits, valid)
    expected = KERNELS["reference"].route(jnp.asarray(logits), jnp.asarray(valid), top(a))
    for name in ("experts", "ranks", "counts"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(got.weights, expected.weights, rtol=0, atol=1e-5)
    ranks, counts = jax.jit(lambda experts: KERNELS["triton"].rank_rows(experts, e))(got.experts)
    np.testing.assert_array_equal(ranks, expected.ranks)
    np.testing.assert_array_equal(counts, expected.counts)


@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("queries", [1, 7, 600])
@pytest.mark.parametrize(("kv", "group", "width"), [(8, 4, 128), (1, 3, 80), (2, 1, 64)])
@pytest.mark.parametrize("dtype", ATOL)
def test_attention_equals_float64(
    dtype: str, kv: int, group: int, width: int, queries: int, window: int | None, rng: np.random.Generator
) -> None:
    """One query in parts and several in blocks, with NaN in what no query sees."""
    batch, slots = 3, 2048
    q, k, v = (
        rng.standard_normal(shape)
        for shape in ((batch, kv, group, queries, width), (batch, kv, slots, width), (batch, kv, slots, width))
    )
    q, k, v = (np.asarray(jnp.asarray(a, dtype), np.float64) for a in (q, k, v))
    starts = rng.integers(0, slots - queries + 1, batch)
    positions = starts[:, None] + np.arange(queries)
    distance = positions[:, :, None] - np.arange(slots)
    seen = np.asarray((distance >= 0) & (distance < (window or slots)))
    scores = np.where(seen[:, None, None], np.einsum("bkgth,bksh->bkgts", q, k) / width**0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bkgts,bksh->bkgth", weights / weights.sum(-1, keepdims=True), v)
    poisoned = [np.where(np.any(seen, axis=1)[:, None, :, None], a, np.nan) for a in (k, v)]
    poison_free_memory()
    ours = jax.jit(partial(pallas_attend, policy=AttentionPolicy(window=window)))(
        *(jnp.asarray(a, dtype) for a in (q, *poisoned)), jnp.asarray(starts, jnp.int32)
    )
    np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=0, atol=ATOL[dtype])


@pytest.mark.parametrize("tokens", [1, 5, 130])
@pytest.mark.parametrize("dtype", ATOL)
def test_rotated_into_the_cache_as_in_xla(dtype: str, tokens: int, rng: np.random.Generator) -> None:
    batch, heads, kv, width, slots = 3, 6, 2, 80, 256
    shapes = [(batch, tokens, n, width) for n in (heads, kv, kv)] + [(batch, tokens, width // 2)] * 2
    arrays = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    kept = "uint16" if dtype == "bfloat16" else dtype
    caches = [jnp.asarray(rng.integers(0, 2**14, (batch, kv, slots, width)), kept) for _ in range(2)]
    starts = jnp.asarray(rng.integers(0, slots - tokens + 1, batch), jnp.int32)
    ours, theirs = (
        jax.jit(lambda *args, rotate=rotate: rotate(*args, dtype))(*arrays, starts, *caches)
        for rotate in (pallas_rotate, rotate_into_cache)
    )
    for one, other in zip(ours, theirs, strict=True):
        if one.dtype == jnp.uint16:  # a last bit may be another's: XLA may multiply and add in one step
            one, other = (jax.lax.bitcast_convert_type(a, jnp.bfloat16) for a in (one, other))
        np.testing.assert_allclose(np.asarray(one, np.float64), np.asarray(other, np.float64), rtol=0.01, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 4096, (6144,)), (8, 4096, (4096, 1024, 1024)), (64, 200, (60,))]
)
@pytest.mark.parametrize("dtype", ATOL)
def test_products_of_few_rows_equal_float64(
    dtype: str, rows: int, inputs: int, outputs: tuple[int, ...], rng: np.random.Generator
) -> None:
    x = jnp.asarray(rng.standard_normal((rows, inputs)), dtype)
    weights = [jnp.asarray(rng.standard_normal((size, inputs)) * inputs**-0.5, dtype) for size in outputs]
    poison_free_memory()
    results = jax.jit(lambda x, *weights: KERNELS["triton"].project(x, *weights))(x, *weights)
    for weight, ours in zip(weights, results, strict=True):
        expected = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
        np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=0, atol=2e-5)
