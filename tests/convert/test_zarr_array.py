"""Arrays as zarr folders: chunks along one axis, every part comes back, and damage is found."""

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from moejax._convert import CheckpointError, TensorInfo
from moejax._convert.zarr_array import CHUNK_BYTES, chunk_shape, read_array, write_array
from tests.messages import refuses

DTYPES = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)


def info_of(values: np.ndarray) -> TensorInfo:
    dtype = next(name for name, dtype in DTYPES.items() if dtype == values.dtype)
    return TensorInfo(name="a", shape=values.shape, dtype=dtype, file=Path("item"), stored_name="a")


def read(folder: Path, values: np.ndarray, index: tuple[slice, ...] | None = None) -> tuple[np.ndarray, int]:
    """The part at `index` of the array in `folder`, which is as `values`, and the bytes that were read for it."""
    ranges = [range(size) for size in values.shape]
    if index is not None:
        ranges = [one[part] for one, part in zip(ranges, index, strict=True)]
    out = np.full([len(one) for one in ranges], -1, values.dtype)
    return out, read_array(folder, info_of(values), ranges, out)


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
    assert math.prod(expected) * 2 <= CHUNK_BYTES


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], int, tuple[slice, ...]]:
    """A shape, the axis that chunks divide, and an index."""
    shape = tuple(draw(st.lists(st.integers(0, 7), min_size=0, max_size=3)))
    bounds = [sorted((draw(st.integers(0, size)), draw(st.integers(0, size)))) for size in shape]
    axis = draw(st.integers(0, max(0, len(shape) - 1)))
    return shape, axis, tuple(slice(first, last) for first, last in bounds)


@given(case=cases(), dtype=st.sampled_from(list(DTYPES)))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_part_comes_back(
    case: tuple[tuple[int, ...], int, tuple[slice, ...]], dtype: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape, axis, index = case
    folder = tmp_path_factory.mktemp("array")
    values = np.arange(math.prod(shape)).reshape(shape).astype(DTYPES[dtype])
    write_array(folder, values, axis)
    for part in (None, index):
        out, count = read(folder, values, part)
        expected = values if part is None else values[part]
        assert out.dtype == values.dtype
        np.testing.assert_array_equal(out, expected)
        assert count >= out.nbytes and (count > 0) == (out.size > 0)


@pytest.fixture
def chunked(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """An array of 4 chunks of 1.5 MB along its second axis."""
    values = np.random.default_rng(0).standard_normal((384, 4096), np.float32)
    write_array(tmp_path / "a", values, 1)
    assert sorted(path.name for path in (tmp_path / "a" / "c" / "0").iterdir()) == ["0", "1", "2", "3"]
    return tmp_path / "a", values


def test_only_the_chunks_that_overlap_are_read(chunked: tuple[Path, np.ndarray]) -> None:
    folder, values = chunked
    (folder / "c" / "0" / "3").unlink()
    out, count = read(folder, values, (slice(5, 9), slice(1000, 1100)))
    assert np.array_equal(out, values[5:9, 1000:1100])
    assert count == values.nbytes // 2
    with pytest.raises(CheckpointError, match="missing"):  # and not taken for zeros
        read(folder, values)


def test_an_array_takes_the_place_of_another(tmp_path: Path) -> None:
    write_array(tmp_path, np.zeros((), np.float64), 0)
    write_array(tmp_path, VALUES, 0)
    assert np.array_equal(read(tmp_path, VALUES)[0], VALUES)


@pytest.mark.parametrize("index", [None, (slice(0, 1), slice(2048, 2049))])
def test_damage_is_found_in_any_part_that_reads_its_chunk(
    chunked: tuple[Path, np.ndarray], index: tuple[slice, ...] | None
) -> None:
    folder, values = chunked
    chunk = folder / "c" / "0" / "2"
    raw = bytearray(chunk.read_bytes())
    raw[-5] ^= 1
    for damaged in (raw, raw[:100], b""):
        chunk.write_bytes(damaged)
        with refuses(CheckpointError, "damaged") as caught:
            read(folder, values, index)
        assert str(folder) in str(caught.value)
        other = (slice(0, 384), slice(3072, 4096))
        assert np.array_equal(read(folder, values, other)[0], values[other])


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"shape": [6, 4]}, ("[6, 4]", "[4, 6]")),
        ({"data_type": "int32"}, ("int32", "float32")),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**9, 6]}}}, (str(10**9),)),
        ({"codecs": [{"name": "unheard of"}]}, ("codecs",)),
        ({"zarr_format": 4}, ("zarr_format",)),
    ],
)
def test_metadata_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, object], facts: tuple[str, ...]
) -> None:
    """No memory is asked for a chunk that is larger than its array."""
    write_array(tmp_path, VALUES, 0)
    raw = json.loads((tmp_path / "zarr.json").read_text())
    (tmp_path / "zarr.json").write_text(json.dumps(raw | change))
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, VALUES)
    assert all(fact in str(caught.value) for fact in (str(tmp_path), *facts)), caught.value
    (tmp_path / "zarr.json").unlink()
    with pytest.raises(CheckpointError, match="zarr.json"):
        read(tmp_path, VALUES)


def test_zarr_version_2_is_read(tmp_path: Path) -> None:
    """As format version 2 of a converted folder has it."""
    metadata = {"shape": [4, 6], "chunks": [4, 3], "compressor": None}
    kvstore = {"driver": "file", "path": f"{tmp_path}/"}
    spec = {"driver": "zarr", "kvstore": kvstore, "metadata": metadata, "dtype": "float32"}
    ts.open(spec, create=True).result().write(VALUES).result()
    out, count = read(tmp_path, VALUES, (slice(1, 3), slice(1, 2)))
    assert np.array_equal(out, VALUES[1:3, 1:2]) and count == VALUES.nbytes // 2
    (tmp_path / "0.1").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        read(tmp_path, VALUES)
