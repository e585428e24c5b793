"""Arrays as files of chunks: what is written is what zarr says, every part comes back, and damage is found."""

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from convert import CheckpointError
from convert.checksums import Sums, array_checksum, joined_checksum
from convert.chunks import CHUNK_BYTES, chunk_shape, read_chunks, write_chunks

NAMES = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


def stored(folder: Path, values: np.ndarray, chunk: tuple[int, ...], dtype: str = "F32") -> Sums:
    """Writes an array with its metadata, which tensorstore makes as it does for Orbax."""
    ts.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{folder}/"},
            "metadata": {"shape": list(values.shape), "chunks": list(chunk), "compressor": None},
            "dtype": NAMES[dtype].name,
        },
        create=True,
    ).result()
    return write_chunks(folder, values, chunk)


def whole(values: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in values.shape)


@pytest.mark.parametrize(
    ("shape", "axis", "expected"),
    [
        ((14336, 4096), 0, (1792, 4096)),  # an expert of Mixtral 8x7B: what each of 8 devices reads is whole chunks
        ((4096, 14336), 1, (4096, 1792)),
        ((16384, 6144), 0, (1024, 6144)),  # of 8x22B
        ((4096, 4096), 1, (4096, 512)),
        ((32001, 4096), 0, (2001, 4096)),  # not divisible: the last chunk is shorter
        ((4096,), 0, (4096,)),
        ((0, 4), 0, (1, 4)),
        ((), 0, ()),
    ],
)
def test_chunk_shapes(shape: tuple[int, ...], axis: int, expected: tuple[int, ...]) -> None:
    assert chunk_shape(shape, 2, axis) == expected
    assert int(np.prod(expected)) * 2 <= CHUNK_BYTES


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[slice, ...]]:
    """A shape, chunks that divide one of its axes, and an index."""
    shape = tuple(draw(st.lists(st.integers(0, 7), min_size=0, max_size=3)))
    divided = draw(st.integers(0, max(0, len(shape) - 1)))
    chunk = tuple(
        draw(st.integers(1, max(1, size))) if axis == divided else max(1, size) for axis, size in enumerate(shape)
    )
    bounds = [sorted((draw(st.integers(0, size)), draw(st.integers(0, size)))) for size in shape]
    return shape, chunk, tuple(slice(first, last) for first, last in bounds)


@given(case=cases(), dtype=st.sampled_from(list(NAMES)))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_every_part_comes_back_and_zarr_reads_the_same(
    case: tuple[tuple[int, ...], tuple[int, ...], tuple[slice, ...]],
    dtype: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    shape, chunk, index = case
    folder = tmp_path_factory.mktemp("chunks")
    values = np.arange(math.prod(shape)).reshape(shape).astype(NAMES[dtype])
    sums = stored(folder, values, chunk, dtype)
    assert sums.whole in (None, array_checksum(values))
    out = np.full(values[index].shape, -1, NAMES[dtype])
    count = read_chunks(folder, shape, dtype, out, index, sums.parts)
    np.testing.assert_array_equal(out, values[index])
    chunk_bytes = math.prod(chunk) * out.itemsize
    assert out.nbytes <= count <= len(sums.parts) * chunk_bytes and count % chunk_bytes == 0
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    np.testing.assert_array_equal(ts.open(spec).result().read().result(), values)
    assert len(list(folder.iterdir())) == 1 + len(sums.parts), "a chunk has no file, which zarr would take for zeros"


@given(sizes=st.lists(st.integers(0, 5000), max_size=5))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_checksums_of_parts_join(sizes: list[int]) -> None:
    values = np.random.default_rng(0).integers(0, 256, sum(sizes), np.uint8)
    parts = np.split(values, np.cumsum(sizes)[:-1]) if sizes else []
    assert joined_checksum((array_checksum(part), part.size) for part in parts) == array_checksum(values)


VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)


def refusal(folder: Path, sums: Sums, index: tuple[slice, ...] | None = None) -> str:
    index = whole(VALUES) if index is None else index
    with pytest.raises(CheckpointError) as caught:
        read_chunks(folder, VALUES.shape, "F32", np.empty_like(VALUES[index]), index, sums.parts)
    return str(caught.value)


def test_a_flipped_byte_is_found_in_any_part_that_reads_its_chunk(tmp_path: Path) -> None:
    sums = stored(tmp_path, VALUES, (4, 2))
    raw = bytearray((tmp_path / "0.1").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "0.1").write_bytes(raw)
    for index in (whole(VALUES), (slice(0, 1), slice(2, 3)), (slice(0, 4), slice(2, 4))):
        assert refusal(tmp_path, sums, index).startswith(f"{tmp_path / '0.1'} was damaged after it was converted: its ")
    other = (slice(0, 4), slice(4, 6))
    assert read_chunks(tmp_path, (4, 6), "F32", np.empty((4, 2), np.float32), other, sums.parts) == VALUES.nbytes // 3


def test_missing_and_truncated_files_are_told(tmp_path: Path) -> None:
    sums = stored(tmp_path, VALUES, (2, 6))
    (tmp_path / "1.0").write_bytes(bytes(7))
    assert refusal(tmp_path, sums) == f"{tmp_path / '1.0'} has 7 bytes, expected 48; it is damaged: " + (
        "convert again with --restart"
    )
    (tmp_path / "1.0").unlink()
    assert refusal(tmp_path, sums) == f"{tmp_path / '1.0'} is missing; convert again with --restart"
    (tmp_path / ".zarray").unlink()
    assert refusal(tmp_path, sums) == f"{tmp_path / '.zarray'} is missing; convert again with --restart"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [6, 4]}, "shape is [6, 4], expected [4, 6]"),
        ({"dtype": "<i4"}, "dtype is '<i4', expected '<f4'"),
        ({"compressor": {"id": "zlib"}}, "compressor is {'id': 'zlib'}, expected None"),
        ({"order": "F"}, "order is 'F', expected 'C'"),
        ({"chunks": [2, 3]}, "chunks is [2, 3], expected one divided axis of [4, 6]"),
        ({"chunks": [10**12, 6]}, "chunks is [1000000000000, 6], expected one"),  # no memory is asked for it
        ({"chunks": [0, 6]}, "chunks is [0, 6], expected one"),
        ({"chunks": "all"}, "chunks is 'all', expected one"),
        ({"chunks": [1, 6]}, "has 4 chunks, 2 are in the manifest"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    sums = stored(tmp_path, VALUES, (2, 6))
    raw = json.loads((tmp_path / ".zarray").read_text())
    (tmp_path / ".zarray").write_text(json.dumps(raw | change))
    assert message in refusal(tmp_path, sums)
