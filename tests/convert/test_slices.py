"""Reading a part of a tensor: the right elements, and no bytes but theirs."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from moejax._convert import CheckpointError, SafetensorsFolder
from moejax._convert.reading import BLOCK_BYTES
from tests.messages import refuses


@st.composite
def parts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """A shape and an index into it."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=0, max_size=4)))
    bounds = [sorted((draw(st.integers(0, size)), draw(st.integers(0, size)))) for size in shape]
    return shape, tuple(slice(first, last) for first, last in bounds)


@given(part=parts())
@settings(max_examples=150, deadline=None)
def test_part_is_the_slice_and_only_it_is_read(
    part: tuple[tuple[int, ...], tuple[slice, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape, index = part
    whole = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    folder = tmp_path_factory.mktemp("part")
    save_file({"other": np.zeros(3, np.float32), "w": whole}, folder / "model.safetensors")
    tensors = SafetensorsFolder.open(folder)
    out = np.full(whole[index].shape, -1, np.float32)
    tensors.read_into("w", out, index)
    np.testing.assert_array_equal(out, whole[index])
    assert tensors.read_bytes.total == whole[index].nbytes


def test_parts_longer_than_a_block(tmp_path: Path) -> None:
    """Rows that are longer than a block, and blocks that end in the middle of a row."""
    rows, width = 3, BLOCK_BYTES // 4 + 1003
    whole = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    save_file({"w": whole}, tmp_path / "model.safetensors")
    tensors = SafetensorsFolder.open(tmp_path)
    for index in [(slice(1, 3), slice(0, width)), (slice(0, rows), slice(3, width - 5)), (slice(1, 3), slice(7, 900))]:
        out = np.empty(whole[index].shape, ml_dtypes.bfloat16)
        tensors.read_into("w", out, index)
        np.testing.assert_array_equal(out, whole[index].astype(ml_dtypes.bfloat16))


def test_open_ended_slices_are_those_of_jax(tmp_path: Path) -> None:
    """A sharding's index has slice(None) for axes that are not split."""
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    save_file({"w": whole}, tmp_path / "model.safetensors")
    out = np.empty((4, 3), np.float32)
    SafetensorsFolder.open(tmp_path).read_into("w", out, (slice(None), slice(3, 6, None)))
    np.testing.assert_array_equal(out, whole[:, 3:])


def test_a_nan_is_told_with_its_place_in_the_whole_tensor(tmp_path: Path) -> None:
    whole = np.zeros((4, 6), np.float32)
    whole[2, 4] = np.nan
    save_file({"w": whole}, tmp_path / "model.safetensors")
    tensors = SafetensorsFolder.open(tmp_path)
    tensors.read_into("w", np.empty((4, 3), np.float32), (slice(0, 4), slice(0, 3)))  # not in this part
    with refuses(CheckpointError, "1", "NaN", "12", "16"):
        tensors.read_into("w", np.empty((4, 3), np.float32), (slice(0, 4), slice(3, 6)))


@pytest.mark.parametrize(
    ("index", "shape", "facts"),
    [
        ((slice(0, 4),), (4, 6), ("index", "1 axes")),
        ((slice(0, 4, 2), slice(0, 6)), (2, 6), ("step 1",)),
        ((slice(0, 2), slice(0, 6)), (4, 6), ("(2, 6)", "(4, 6)")),
    ],
    ids=["too few axes", "a step", "another shape"],
)
def test_bad_index(tmp_path: Path, index: tuple[slice, ...], shape: tuple[int, ...], facts: tuple[str, ...]) -> None:
    save_file({"w": np.zeros((4, 6), np.float32)}, tmp_path / "model.safetensors")
    with refuses(ValueError, *facts):
        SafetensorsFolder.open(tmp_path).read_into("w", np.empty(shape, np.float32), index)
