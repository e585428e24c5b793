"""The small layers against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from moejax._sharding import LogicalAxes
from moejax.families.table import named_configs
from moejax.model.layers import Embedding, RMSNorm
from moejax.model.rotary import Rotation, rotation
from moejax.ops import reference
from moejax.ops.table import make_ops
from moejax.runtime.platform import smallest_product
from moejax.weights.params import merge, split
from moejax.weights.storage import Plain, linear
from moejax.weights.weight import Ones, Weight
from tests.moejax.meshes import on_mesh

ONE_DEVICE = on_mesh(named_configs()["mixtral-8x7b"])
FLOAT32_RTOL = 2e-6  # a dozen roundings of 6e-8


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 5)])
def test_linear_multiplies_the_last_axis(lead: tuple[int, ...]) -> None:
    x, w = normal(*lead, 6), normal(4, 6)
    got = linear(jnp.asarray(x), jnp.asarray(w))
    assert got.shape == (*lead, 4)
    np.testing.assert_allclose(got, x.astype(np.float64) @ w.astype(np.float64).T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_linear_has_a_float32_result_of_unconverted_operands(dtype: str) -> None:
    """The result of 16-bit operands is not rounded to 16 bits: 256 + 1 needs 9 bits."""
    x, w = jnp.ones((2, 257), dtype), jnp.ones((3, 257), dtype)
    got = linear(x, w)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, np.full((2, 3), 257.0))
    products = [eqn for eqn in jax.make_jaxpr(linear)(x, w).eqns if eqn.primitive.name == "dot_general"]
    assert [str(atom.aval.dtype) for atom in products[0].invars] == [dtype, dtype]


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_product_has_the_fewest_rows_that_the_platform_runs_fast(dtype: str, rows: int) -> None:
    """A single row is padded where one is slow; nobody sees the padding."""
    x, w = normal(rows, 5), normal(3, 5)
    x_given, w_given = jnp.asarray(x, dtype), jnp.asarray(w, dtype)
    products = [eqn for eqn in jax.make_jaxpr(linear)(x_given, w_given).eqns if eqn.primitive.name == "dot_general"]
    assert products[0].invars[0].aval.shape == (max(rows, smallest_product(x_given.dtype)), 5)
    exact = np.asarray(x_given).astype(np.float64) @ np.asarray(w_given).astype(np.float64).T
    got = linear(x_given, w_given)
    assert got.shape == (rows, 3)
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-5)


def weight(shape: tuple[int, ...], axes: LogicalAxes) -> Weight:
    return Weight(path="w", shape=shape, axes=axes, init=Ones(), names=("w",), item="w", key="w", part="head")


def rotate(x: Array, angles: Rotation) -> Array:
    return reference.rotate(x, *angles)


def norm_with(scale: Array, eps: float) -> RMSNorm:
    norm = RMSNorm(weight(scale.shape, ("embed",)), eps, ONE_DEVICE, make_ops("dense"), dtype=scale.dtype)
    return merge(*split(norm), {"scale": Plain(array=scale, axes=("embed",))})


@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_rms_norm_equals_its_formula(eps: float) -> None:
    scale, x = normal(8, seed=1), normal(2, 3, 8) * np.array([1e-3, 1.0, 1e3], np.float32)[None, :, None]
    norm = norm_with(jnp.asarray(scale), eps)
    x64 = x.astype(np.float64)
    expected = x64 / np.sqrt((x64**2).mean(axis=-1, keepdims=True) + eps) * scale
    same, normed = norm(jnp.asarray(x), None)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_allclose(normed, expected, rtol=FLOAT32_RTOL, atol=0)
    total, normed = norm(jnp.asarray(x / 2), jnp.asarray(x / 2))
    np.testing.assert_array_equal(total, x)
    np.testing.assert_allclose(normed, expected, rtol=FLOAT32_RTOL, atol=0)


def test_rms_norm_of_bfloat16_rounds_once() -> None:
    """Squares, mean and scale are float32, whatever the dtype that comes and goes."""
    given = jnp.asarray(1 + normal(64, seed=1), jnp.bfloat16)
    x = jnp.asarray(normal(1, 4, 64) * 100, jnp.bfloat16)
    x64, scale = np.asarray(x).astype(np.float64), np.asarray(given).astype(np.float64)
    exact = x64 / np.sqrt((x64**2).mean(axis=-1, keepdims=True) + 1e-5) * scale
    got = norm_with(given, 1e-5)(x, None)[1]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got).astype(np.float64), exact, rtol=2**-8, atol=0)  # half a unit of 8 bits


def plain_rotation(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """Every pair (i, i + H/2) as a complex number, turned by position * theta^(-2i/H)."""
    h = x.shape[-1]
    pairs = x[..., : h // 2].astype(np.float64) + 1j * x[..., h // 2 :]
    angles = positions[..., None] * theta ** (-2 * np.arange(h // 2) / h)
    turned = pairs * np.exp(1j * angles)[:, :, None, :]
    return np.concatenate([turned.real, turned.imag], axis=-1)


@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize("head_dim", [2, 6, 16])
def test_rotation_turns_pairs(head_dim: int, theta: float) -> None:
    positions = np.array([[0, 1, 2, 500], [7, 8, 9, 4000]])
    x = normal(2, 4, 3, head_dim)
    got = rotate(jnp.asarray(x), rotation(jnp.asarray(positions), head_dim, theta))
    # An angle of 4,000 has a float32 error of 4,000 * 1.2e-7 at most, and the values are at most about 4.
    np.testing.assert_allclose(got, plain_rotation(x, positions, theta), rtol=0, atol=3e-3)
    np.testing.assert_allclose(got[0, :2], plain_rotation(x, positions, theta)[0, :2], rtol=0, atol=2e-6)
    np.testing.assert_array_equal(got[0, 0], x[0, 0])


def test_scores_depend_on_distance_only() -> None:
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)

    def score(q_position: int, k_position: int) -> float:
        turned = [
            np.asarray(rotate(jnp.asarray(x), rotation(jnp.array([[position]]), 8, 1e4))).ravel()
            for x, position in ((q, q_position), (k, k_position))
        ]
        return float(turned[0] @ turned[1])

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_rotation_is_float32_for_16_bit_heads() -> None:
    x = jnp.asarray(normal(1, 2, 1, 4), jnp.bfloat16)
    angles = rotation(jnp.array([[5, 6]]), 4, 1e4)
    assert angles.cos.dtype == angles.sin.dtype == jnp.float32
    assert rotate(x, angles).dtype == jnp.float32


def embedding_of(table: np.ndarray, dtype: str) -> Embedding:
    axes: LogicalAxes = ("vocab", "embed")
    embedding = Embedding(weight(table.shape, axes), ONE_DEVICE, make_ops("dense"), multiplied=True, dtype=dtype)
    return merge(*split(embedding), {"table": Plain(array=jnp.asarray(table, dtype), axes=axes)})


def test_embedding_looks_up_rows_and_scores_them() -> None:
    table = normal(7, 4)
    embedding = embedding_of(table, "float32")
    tokens = np.array([[0, 6, 3], [3, 3, 1]])
    np.testing.assert_array_equal(embedding.encode(jnp.asarray(tokens)), table[tokens])
    x = normal(2, 4)
    np.testing.assert_allclose(embedding.logits(jnp.asarray(x)), x @ table.T, rtol=0, atol=1e-6)


def test_logits_of_a_16_bit_embedding_are_float32() -> None:
    embedding = embedding_of(normal(7, 4), "bfloat16")
    assert embedding.encode(jnp.zeros((1, 2), jnp.int32)).dtype == jnp.bfloat16
    assert embedding.logits(jnp.ones((1, 4), jnp.bfloat16)).dtype == jnp.float32
