"""The compiled kernels against their specification, and the promise that rows do not depend on their neighbours."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from moejax.families.config import AttentionPolicy
from moejax.ops import reference
from moejax.ops.expert import Expert
from moejax.ops.native import ops
from moejax.ops.native.packed import Packed
from moejax.ops.routing import Routing
from tests.messages import refuses
from tests.moejax.moe.oracle import Layer, moe_loop, random_layer

DTYPES = ("float32", "bfloat16", "float16")
# Sums of order 1 of at most 200 products that float32 rounds to 6e-8; exponentials to 2e-7.
FLOAT32_ATOL = 5e-6
# Hidden values rounded the other way in their last bit (2^-8 and 2^-11 of at most 4), times a weight of order 0.1.
HIDDEN_ATOL = {"float32": 5e-6, "bfloat16": 5e-3, "float16": 1e-3}

linear = jax.jit(lambda x, *weights: ops.linear(x, *map(Packed.of, weights)))


@jax.jit
def expert_ffn(gate: Array, up: Array, down: Array, x: Array, ids: Array, weights: Array) -> Array:
    return ops.expert_ffn(Packed.of(gate), Packed.of(up), Packed.of(down), x, ids, weights)


attend = jax.jit(ops.attend, static_argnums=4)
reference_attend = jax.jit(reference.attend, static_argnums=4)

dtypes = pytest.mark.parametrize("dtype", DTYPES)


def normal(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype)


def float64(x: Array) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def same_bits(got: Array, expected: Array) -> None:
    np.testing.assert_array_equal(np.asarray(got).view(np.uint32), np.asarray(expected).view(np.uint32))


@dtypes
@pytest.mark.parametrize(
    ("rows", "depth", "outputs"),
    # Around a tile's rows and outputs, a block of rows, and every kind of tail of a pack.
    [(0, 8, 3), (1, 1, 1), (2, 31, 3), (5, 32, 4), (6, 33, 5), (7, 64, 70), (17, 100, 9), (48, 40, 8), (128, 47, 13)],
)
def test_linear(dtype: str, rows: int, depth: int, outputs: int) -> None:
    x, first, second = (normal((n, depth), dtype, i) for i, n in enumerate((rows, outputs, outputs + 2)))
    got = linear(x, first, second)
    assert [y.shape for y in got] == [(rows, outputs), (rows, outputs + 2)] and got[0].dtype == jnp.float32
    for y, w in zip(got, (first, second), strict=True):
        np.testing.assert_allclose(y, float64(x) @ float64(w).T, rtol=0, atol=1e-5 * depth**0.5)
    for y, expected in zip(got, jax.jit(reference.project)(x, first, second), strict=True):
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * depth**0.5)


@dtypes
def test_linear_of_a_row_has_the_same_bits_in_any_company(dtype: str) -> None:
    x, w = normal((61, 75), dtype), normal((150, 75), dtype, 1)
    (alone,) = linear(x[:1], w)
    for rows in (2, 3, 5, 6, 7, 50, 61):
        (company,) = linear(x[:rows][::-1], w)
        same_bits(company[-1:], alone)


def test_linear_on_several_threads_has_the_same_bits() -> None:
    """2 MB of weights are shared out; 75 KB of them, alone, are not."""
    x, w = normal((3, 1024), "bfloat16"), normal((1030, 1024), "bfloat16", 1)
    (whole,) = linear(x, w)
    np.testing.assert_allclose(whole, float64(x) @ float64(w).T, rtol=0, atol=1e-4)
    for _ in range(3):
        same_bits(linear(x, w)[0], whole)
    for first in (0, 499, 1000):
        same_bits(linear(x, w[first : first + 30])[0], whole[:, first : first + 30])


def test_linear_spreads_nan_to_its_own_row_only() -> None:
    x, w = np.array(normal((7, 40), "float32")), normal((9, 40), "float32", 1)
    x[3, 39], x[5, 0] = np.nan, np.inf
    y: np.ndarray = np.array(linear(jnp.asarray(x), w)[0])
    assert np.isnan(y[3]).all() and np.isinf(y[5]).all() and np.isfinite(np.delete(y, (3, 5), axis=0)).all()


def routing(tokens: int, chosen: int, experts: int, kind: str) -> Routing:
    rng = np.random.default_rng([tokens, chosen, experts])
    if kind == "one expert":
        ids = np.full((tokens, chosen), experts - 1)
    elif kind == "none":
        ids = np.full((tokens, chosen), experts)
    else:  # different experts, some of them none
        ids = np.stack([rng.permutation(experts + 1)[:chosen] for _ in range(tokens)])
    return Routing(jnp.asarray(ids, jnp.int32), jnp.asarray(rng.random(ids.shape), jnp.float32))


@dtypes
@pytest.mark.parametrize(
    ("tokens", "chosen", "experts", "kind"),
    [(1, 1, 1, "mixed"), (1, 2, 8, "mixed"), (2, 2, 3, "none"), (9, 4, 16, "mixed"), (60, 1, 4, "one expert")]
    + [(17, 2, 8, "mixed"), (128, 2, 5, "mixed")],
)
def test_expert_ffn(dtype: str, tokens: int, chosen: int, experts: int, kind: str) -> None:
    layer, x = random_layer(experts, 37, 53, dtype), normal((tokens, 37), dtype)
    routed = routing(tokens, chosen, experts, kind)
    got = expert_ffn(*layer.stacked, x, routed.experts, routed.weights)
    assert got.dtype == jnp.float32
    expected = jax.jit(reference.expert_ffn)(*layer.stacked, x, routed.experts, routed.weights)
    np.testing.assert_allclose(got, expected, rtol=0, atol=HIDDEN_ATOL[dtype])
    if dtype == "float32":
        np.testing.assert_allclose(got, moe_loop(layer, np.asarray(x), routed), rtol=0, atol=FLOAT32_ATOL)


def test_expert_ffn_of_no_tokens() -> None:
    routed = routing(0, 2, 3, "one expert")
    got = expert_ffn(*random_layer(3, 8, 12).stacked, normal((0, 8), "float32"), routed.experts, routed.weights)
    assert got.shape == (0, 8)


@dtypes
def test_expert_ffn_of_a_token_has_the_same_bits_in_any_company(dtype: str) -> None:
    """Large enough for several threads. Every token is compared, so with experts that have 1 to 80 rows."""
    layer, x = random_layer(3, 200, 130, dtype), normal((80, 200), dtype)
    routed = routing(80, 2, 3, "mixed")
    together = expert_ffn(*layer.stacked, x, routed.experts, routed.weights)
    for first, count in ((0, 1), (1, 1), (2, 7), (9, 71)):
        some = slice(first, first + count)
        part = expert_ffn(*layer.stacked, x[some], routed.experts[some], routed.weights[some])
        same_bits(part, together[some])


def test_expert_ffn_reads_no_expert_that_nobody_chose() -> None:
    layer = random_layer(4, 16, 24)
    poisoned = [Expert(*(jnp.full(m.shape, jnp.nan) for m in e)) if i != 2 else e for i, e in enumerate(layer.experts)]
    x, ids, weights = normal((5, 16), "float32"), jnp.full((5, 1), 2, jnp.int32), jnp.ones((5, 1))
    same_bits(
        expert_ffn(*Layer(experts=poisoned).stacked, x, ids, weights), expert_ffn(*layer.stacked, x, ids, weights)
    )


@pytest.mark.parametrize("where", ["token", "weight", "expert"])
def test_expert_ffn_spreads_nan_no_further_than_it_must(where: str) -> None:
    layer, x = random_layer(4, 16, 24), np.array(normal((6, 16), "float32"))
    ids, weights = jnp.asarray([[0], [1], [2], [3], [1], [4]], jnp.int32), np.ones((6, 1), np.float32)
    experts = list(layer.experts)
    if where == "token":
        x[1, 3] = np.nan
    elif where == "weight":
        weights[1] = np.nan
    else:
        experts[1] = Expert(experts[1].gate, experts[1].up.at[5, 5].set(jnp.nan), experts[1].down)
    y = np.array(expert_ffn(*Layer(experts=experts).stacked, jnp.asarray(x), ids, jnp.asarray(weights)))
    assert np.isnan(y).any(axis=1).tolist() == [False, True, False, False, where == "expert", False]
    np.testing.assert_array_equal(y[5], np.zeros(16))


@pytest.mark.parametrize("wrong", [-1, 5])
def test_expert_ffn_refuses_ids_of_no_expert(wrong: int) -> None:
    ids = jnp.asarray([[0], [wrong]], jnp.int32)
    with refuses(jax.errors.JaxRuntimeError, wrong, "0 to 4"):
        expert_ffn(*random_layer(4, 8, 8).stacked, normal((2, 8), "float32"), ids, jnp.ones((2, 1))).block_until_ready()


ATTENTION = [(1, 1, 1, 1, 1, 8, None), (2, 3, 2, 1, 40, 64, None), (2, 1, 5, 7, 16, 24, None), (2, 2, 4, 33, 64, 20, 9)]
# Less than a pack, packs and a tail of every kind: one vector of values and less, after four vectors, an odd one.
ATTENTION += [(1, 2, 2, 3, 20, h, None) for h in (7, 16, 40, 80)]


@dtypes
@pytest.mark.parametrize(("b", "k", "g", "t", "s", "h", "window"), ATTENTION)
def test_attend(dtype: str, b: int, k: int, g: int, t: int, s: int, h: int, window: int | None) -> None:
    policy = AttentionPolicy(window=window)
    q, keys, values = (normal(shape, dtype) for shape in ((b, k, g, t, h), (b, k, s, h), (b, k, s, h)))
    starts = jnp.asarray(np.random.default_rng(s).integers(0, s - t + 1, b), jnp.int32)
    got = attend(q, keys, values, starts, policy)
    # Of several queries weights are rounded to bfloat16, by at most 2^-9 of each and so of their sum.
    rounding = 2**-8 * float(jnp.abs(values.astype(jnp.float32)).max()) if dtype == "bfloat16" and t > 1 else 0
    expected = reference_attend(q, keys, values, starts, policy)
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT32_ATOL + rounding)


@dtypes
def test_attend_has_the_same_bits_in_any_batch_and_cache(dtype: str) -> None:
    """Alone with a cache as long as needed, and among others in a longer one whose unseen slots hold NaN."""
    q, keys, values = (normal(shape, dtype) for shape in ((3, 2, 2, 4, 48), (3, 2, 70, 48), (3, 2, 70, 48)))
    starts = jnp.asarray([5, 20, 37], jnp.int32)
    for row, (start, t) in enumerate(product((5, 20, 37), (1, 4))):
        row //= 2
        used = start + t
        poisoned = [cache.at[row, :, used:].set(jnp.nan) for cache in (keys, values)]
        together = attend(q[:, :, :, :t], *poisoned, starts, AttentionPolicy())
        one = slice(row, row + 1)
        alone = attend(q[one, :, :, :t], keys[one, :, :used], values[one, :, :used], starts[one], AttentionPolicy())
        same_bits(together[one], alone)


def test_attend_spreads_nan_to_the_queries_that_see_it() -> None:
    q, keys, values = (normal(shape, "float32") for shape in ((1, 2, 2, 6, 16), (1, 2, 8, 16), (1, 2, 8, 16)))
    y = attend(q, keys.at[0, 0, 3, 2].set(jnp.nan), values, jnp.zeros(1, jnp.int32), AttentionPolicy())
    seen: np.ndarray = np.array(jnp.isnan(y).all(axis=-1))[0]  # K G T
    assert seen[0].tolist() == [[False] * 3 + [True] * 3] * 2 and not seen[1].any()


def test_operands_that_do_not_fit_are_refused_while_tracing() -> None:
    x, w = normal((2, 8), "float32"), normal((3, 8), "float32")
    with refuses(TypeError, "bfloat16, float32"):
        linear(x, w.astype(jnp.bfloat16))
    with refuses(TypeError, "(2, 8)", "(3, 7)"):
        linear(x, w[:, :7])
    with pytest.raises(TypeError, match="expected"):
        expert_ffn(w[None], w[None], w[None], x, jnp.zeros((2, 1), jnp.int32), jnp.ones((2, 1)))
    with pytest.raises(TypeError, match="for 2 tokens"):
        expert_ffn(*random_layer(2, 8, 4).stacked, x, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1)))


@dtypes
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("window", [None, 5])
def test_attend_keeps_what_is_not_finite_from_queries_that_do_not_see_it(
    dtype: str, bad: float, window: int | None
) -> None:
    """Of a prompt, whose queries share blocks of keys: a value at position 70 is seen from there on."""
    t, at = 100, 70
    q, keys, values = (normal(shape, dtype) for shape in ((1, 2, 2, t, 16), (1, 2, t, 16), (1, 2, t, 16)))
    starts = jnp.zeros(1, jnp.int32)
    clean = np.asarray(attend(q, keys, values, starts, AttentionPolicy(window=window)))
    got = np.asarray(attend(q, keys, values.at[:, :, at, 3].set(bad), starts, AttentionPolicy(window=window)))
    sees = np.arange(t) >= at if window is None else (np.arange(t) >= at) & (np.arange(t) < at + window)
    assert not np.isfinite(got[..., 3])[..., sees].any()
    assert np.isfinite(got[..., ~sees, :]).all()
    np.testing.assert_allclose(got[..., ~sees, :], clean[..., ~sees, :], rtol=0, atol=FLOAT32_ATOL)


@dtypes
@pytest.mark.parametrize("t", [1, 2, 20])
@pytest.mark.parametrize("bad", [False, True])
def test_attend_weighs_keys_of_minus_infinite_scores_with_nothing(dtype: str, t: int, bad: bool) -> None:
    """The first 70 keys, more than a block of them; a NaN among them stays one."""
    s, hidden = 130, 70
    q, keys, values = (normal(shape, dtype) for shape in ((1, 2, 2, t, 16), (1, 2, s, 16), (1, 2, s, 16)))
    q = jnp.abs(q) + jnp.asarray(0.1, dtype)
    starts = jnp.full(1, s - t, jnp.int32)
    masked = keys.at[:, :, :hidden].set(-jnp.inf)
    got = np.asarray(attend(q, masked.at[0, 0, 3].set(jnp.nan) if bad else masked, values, starts, AttentionPolicy()))
    window = jnp.full(1, s - t - hidden, jnp.int32)
    wanted = np.asarray(attend(q, keys[:, :, hidden:], values[:, :, hidden:], window, AttentionPolicy()))
    np.testing.assert_allclose(got[:, int(bad) :], wanted[:, int(bad) :], rtol=0, atol=4 * HIDDEN_ATOL[dtype])
    assert np.isnan(got[:, 0]).all() == bad
