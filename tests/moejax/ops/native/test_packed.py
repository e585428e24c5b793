"""Weights in strips: C++ and Python pack alike, and a model computes and gives back the numbers that it was given."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import moejax
from moejax._sharding import mesh_config
from moejax.families.table import named_config
from moejax.model.structure import make_parallel
from moejax.ops.native.library import pack_rows
from moejax.ops.native.packed import Packed
from moejax.runtime.bits import from_bits
from moejax.runtime.huge_pages import in_huge_pages, why_none
from moejax.weights import strips
from moejax.weights.filling import stored
from moejax.weights.layouts import Piece
from moejax.weights.storage import Plain, Rows, Stored
from tests.huge_memory import Refusals
from tests.moejax.decoding.tiny_checkpoint import load_tiny

FILE = "model.safetensors"
LOGITS_ATOL = 1e-4  # another order of float32 sums, of logits up to 20
DTYPES = ("float32", "bfloat16", "float16")
# Around a square's 16 rows and units, a strip's 64 outputs, a pair's 2 inputs.
SHAPES = [(1, 1), (8, 33), (15, 2), (16, 64), (17, 31), (48, 7), (63, 16), (64, 65), (65, 130), (200, 129), (128, 128)]

dtypes = pytest.mark.parametrize("dtype", DTYPES)


def matrix(outputs: int, inputs: int, dtype: str) -> jax.Array:
    """Numbers that are all different, so that one in another's place is found."""
    numbers = np.random.default_rng([outputs, inputs]).permutation(outputs * inputs).reshape(outputs, inputs)
    return jnp.asarray(numbers / 256 - 20, dtype)


@dtypes
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_both_languages_pack_alike_and_unpack(dtype: str, outputs: int, inputs: int) -> None:
    numbers = matrix(outputs, inputs, dtype)
    expected = np.asarray(strips.pack(numbers))
    assert expected.shape == strips.packed_shape(outputs, inputs, dtype)
    got = np.full(expected.shape, 7, expected.dtype)
    pack_rows(np.asarray(numbers), got)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(strips.unpack(jnp.asarray(got), outputs, inputs), numbers)


@dtypes
def test_every_number_is_where_it_is_said_to_be(dtype: str) -> None:
    """The layout in one line: strip, pair of inputs, output, which of the pair."""
    numbers, n = np.asarray(matrix(130, 9, dtype)), strips.together(dtype)
    packed = np.asarray(strips.pack(jnp.asarray(numbers)))
    for output, i in ((0, 0), (63, 8), (64, 1), (129, 4)):
        assert packed[output // 64, i // n, output % 64, i % n] == numbers[output, i]
    assert np.count_nonzero(packed) == np.count_nonzero(numbers)


@dtypes
def test_rows_are_taken_from_strips(dtype: str) -> None:
    numbers = matrix(150, 13, dtype)
    ids = jnp.asarray([[0, 63, 64], [149, 150, 1000]])
    for one in (Packed.of(numbers), Rows.of(numbers)):
        got = jax.jit(lambda value, ids: value.take(ids))(one, ids)
        assert got.dtype == numbers.dtype
        np.testing.assert_array_equal(got, numbers[np.minimum(ids, 149)])
        np.testing.assert_array_equal(one.numbers(), numbers)
        assert (one.shape, one.dtype) == (numbers.shape, numbers.dtype)


@pytest.mark.parametrize("storage", [Plain, Rows, Packed])
def test_an_id_that_is_none_is_the_nearest(storage: type[Stored]) -> None:
    numbers = matrix(70, 3, "bfloat16")
    got = storage.of(numbers).take(jnp.asarray([-1, -70, 70, 1000]))
    assert jnp.array_equal(got, numbers[jnp.asarray([0, 0, 69, 69])])


@dtypes
@pytest.mark.parametrize("mesh", ["tensor=2", "expert=2,tensor=4"])
def test_a_device_has_strips_of_its_own_part(dtype: str, mesh: str) -> None:
    """Outputs along `tensor`, inputs along `expert`: the whole array is the devices' arrays side by side."""
    parallel = make_parallel(named_config("186m"), mesh_config(mesh).build(), "replicated")
    axes = ("experts", "mlp", "embed")
    numbers = jax.device_put(jnp.stack([matrix(88, 10, dtype)] * 4), parallel.sharding(*axes))
    parts = tuple(parallel.rules.parts(axis) for axis in axes)
    declared = Packed.declare(numbers.shape, axes, parts, dtype)
    piece = Piece(numbers.shape, axes, (0, 1, 2, 3))
    value: Any = stored(declared, piece, numbers, parallel.sharding, np.empty)
    assert value.array.shape == declared.array.shape and value.shape == numbers.shape
    np.testing.assert_array_equal(value.numbers(), numbers)
    for shard, logical in zip(value.array.addressable_shards, numbers.addressable_shards, strict=True):
        assert shard.device == logical.device
        np.testing.assert_array_equal(from_bits(shard.data, dtype), strips.pack(jnp.asarray(logical.data)))


@pytest.mark.parametrize("mesh", [None, "expert=2,tensor=2", "tensor=8"])
@pytest.mark.parametrize(("tied", "dtype"), [(False, "bfloat16"), (True, "bfloat16"), (True, "float32")])
def test_a_model_gives_back_what_it_was_given(tmp_path: Path, mesh: str | None, tied: bool, dtype: str) -> None:
    """Its matrices are packed, a tied embedding is held once, and every number is that of a model of plain ones."""
    load_tiny(tmp_path, tie_word_embeddings=tied)
    if tied:  # the head that the folder has is another one, which would be used
        kept = {name: value for name, value in load_file(tmp_path / FILE).items() if name != "lm_head.weight"}
        save_file(kept, tmp_path / FILE)
    packed = moejax.load(tmp_path, dtype=dtype, mesh=mesh, expert_backend="native")
    plain = moejax.load(tmp_path, dtype=dtype, expert_backend="blocked")
    for name in ("q", "k", "v", "o"):
        assert isinstance(packed.params[f"layers.0.attention.{name}"], Packed)
    assert isinstance(packed.params["embed.table"], Packed if tied else Rows)
    assert ("head.table" in packed.params) == (not tied)
    values, others = (one.structure.unpack(one.params) for one in (packed, plain))
    assert values.keys() == others.keys()
    for path, value in values.items():
        np.testing.assert_array_equal(np.asarray(value).view(np.uint8), np.asarray(others[path]).view(np.uint8), path)
    if dtype == "float32":
        prompts = [[1, 5, 9, 2], [7, 3]]
        for one, other in zip(moejax.logits(packed, prompts), moejax.logits(plain, prompts), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=LOGITS_ATOL)


@pytest.mark.parametrize("source", ["demo", "random:186m"])
def test_weights_lie_in_huge_pages(source: str, refusals: Refusals) -> None:
    model = moejax.load(source, dtype="bfloat16", expert_backend="native")
    huge, everything = in_huge_pages(jax.tree.leaves({path: value for path, value in model.params.items()}))
    assert huge is not None and everything > 7e6
    if why_none() is None:
        assert huge > 0.9 * everything or refusals.happened()
    else:
        assert huge == 0
