"""The values of a tensor: converted as numpy converts them, checked, and in bounded memory."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from moejax._convert import CheckpointError, SafetensorsFolder
from moejax._convert.reading import BLOCK_BYTES, all_finite
from tests.convert.checkpoint_files import DTYPES, SINGLE, entry, file_bytes, write_single
from tests.messages import refuses

BF16 = ml_dtypes.bfloat16
# Elements of more than two chunks in any dtype, the last one not full: chunk edges are where indices go wrong.
LONG = BLOCK_BYTES + 5


def stored(folder: Path, array: np.ndarray) -> SafetensorsFolder:
    # A tensor of 3 values before it: its bytes begin where no dtype is aligned.
    return SafetensorsFolder.open(write_single(folder, {"odd": np.ones(3, np.float16), "w": array}))


def values(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Values that every dtype can hold rounded: normal, subnormal in float16, both zeros."""
    array = np.random.default_rng(0).standard_normal(shape)
    flat = array.reshape(-1)
    flat[::7] *= 1e-6
    flat[:2] = 0.0, -0.0
    return array.astype(dtype)


@pytest.mark.parametrize(("source", "target"), [*product(DTYPES.values(), repeat=2)], ids=str)
def test_converts_as_numpy_does(tmp_path: Path, source: np.dtype, target: np.dtype) -> None:
    array = values((3, 5, LONG // 24), source)
    assert array.nbytes > BLOCK_BYTES
    read = stored(tmp_path, array).read("w", target)
    assert (read.dtype, read.shape) == (target, array.shape)
    assert read.tobytes() == array.astype(target).tobytes()


def test_dtype_defaults_to_that_of_the_file_and_may_be_named(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path, np.ones(2, BF16))
    assert checkpoint.read("w").dtype == BF16
    assert checkpoint.read("w", "float16").dtype == np.float16
    assert checkpoint.read("w", np.float32).dtype == np.float32


def test_memory_is_the_arrays_own(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path, np.array([1, 2], np.float32))
    first, second = checkpoint.read("w"), checkpoint.read("w")
    first[:] = 9
    (tmp_path / SINGLE).write_bytes(bytes(1000))
    assert first.flags.owndata
    assert second.tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [*DTYPES.values()], ids=str)
def test_reads_into_a_slot_of_a_stack_and_nowhere_else(tmp_path: Path, dtype: np.dtype) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    stack = np.full((3, 2, 3), -1, dtype)
    stored(tmp_path, array).read_into("w", stack[1])
    assert stack.astype(np.float32).tolist() == [[[-1] * 3] * 2, array.tolist(), [[-1] * 3] * 2]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,)])
def test_scalars_and_empty_tensors(tmp_path: Path, shape: tuple[int, ...]) -> None:
    checkpoint = stored(tmp_path, np.full(shape, 1.5, np.float32))
    for dtype in DTYPES.values():
        assert checkpoint.read("w", dtype).astype(np.float32).tolist() == np.full(shape, 1.5).tolist()


def test_threads_may_read_at_the_same_time(tmp_path: Path) -> None:
    arrays = {f"w{i}": np.full(50_000, i, np.float32) for i in range(8)}
    checkpoint = SafetensorsFolder.open(write_single(tmp_path, arrays))
    with ThreadPoolExecutor(4) as pool:
        for name, read in zip(arrays, pool.map(checkpoint.read, arrays), strict=True):
            assert (read == arrays[name]).all()


@pytest.mark.parametrize("dtype", [*DTYPES.values()], ids=str)
@pytest.mark.parametrize(
    ("position", "bad"), [(0, np.nan), (12_345, -np.inf), (BLOCK_BYTES // 2, -np.nan), (LONG - 1, np.inf)]
)
def test_names_the_place_of_a_value_that_is_not_finite(
    tmp_path: Path, dtype: np.dtype, position: int, bad: float
) -> None:
    array = np.zeros(LONG, dtype)
    array[position] = bad
    checkpoint = stored(tmp_path, array)
    with refuses(CheckpointError, tmp_path / SINGLE, "'w'", "1", "NaN", LONG, position):
        checkpoint.read("w")


@pytest.mark.parametrize("target", [*DTYPES.values()], ids=str)
def test_counts_values_that_are_not_finite_over_all_chunks_and_in_any_target(tmp_path: Path, target: np.dtype) -> None:
    array = np.zeros((LONG, 1), BF16)
    array[[7, 8, LONG - 2], 0] = np.nan, np.inf, np.nan
    checkpoint = stored(tmp_path, array)
    with refuses(CheckpointError, "3", "NaN", LONG, "7"):
        checkpoint.read("w", target)
    read = checkpoint.read("w", target, allow_nan=True)
    assert np.isnan(read[[7, LONG - 2], 0]).all()
    assert np.isinf(read[8, 0])
    assert np.count_nonzero(read) == 3


@pytest.mark.parametrize("target", [*DTYPES.values()], ids=str)
@pytest.mark.parametrize("signalling", [np.uint16(0x7F81).view(BF16), np.uint32(0x7F800001).view(np.float32)], ids=str)
def test_signalling_nans_are_found_without_a_warning(tmp_path: Path, signalling: np.ndarray, target: np.dtype) -> None:
    checkpoint = stored(tmp_path, np.array([0, signalling], signalling.dtype))
    with refuses(CheckpointError, "1", "NaN", "2", "1"):
        checkpoint.read("w", target)
    read = checkpoint.read("w", target, allow_nan=True)
    with np.errstate(invalid="ignore"):
        assert np.isnan(read).tolist() == [False, True]


@pytest.mark.parametrize("dtype", [*DTYPES.values()], ids=str)
def test_all_finite_knows_every_bit_pattern(dtype: np.dtype) -> None:
    if dtype.itemsize == 2:
        patterns = np.arange(2**16, dtype=np.uint16)
    else:
        # The largest and smallest exponents with the first and last mantissas, of both signs.
        unsigned = np.dtype(f"u{dtype.itemsize}")
        edges = np.array([np.inf, np.finfo(dtype).max, np.nan, 0.0, np.finfo(dtype).tiny], dtype).view(unsigned)
        patterns = np.concatenate(
            [edges + delta for delta in np.array([0, 1, -1], f"i{dtype.itemsize}").view(unsigned)]
        )
        patterns = np.concatenate([patterns, patterns ^ (unsigned.type(1) << unsigned.type(8 * dtype.itemsize - 1))])
    floats = patterns.view(dtype)
    with np.errstate(invalid="ignore"):  # numpy warns of signalling NaNs
        expected = np.isfinite(floats)
    assert expected.any() and not expected.all()
    assert all_finite(floats[expected])
    assert not any(all_finite(floats[i : i + 1]) for i in np.flatnonzero(~expected))
    assert all_finite(floats[:0])


@pytest.mark.parametrize(
    ("source", "target", "too_large", "fits", "advice"),
    [
        ("F32", "float16", 65520.0, 65519.0, "bfloat16"),
        ("BF16", "float16", -1e5, 65280.0, "bfloat16"),
        ("F64", "float16", 1e300, -65504.0, "bfloat16"),
        ("F32", "bfloat16", 3.4e38, 3.38e38, "float32"),
        ("F64", "bfloat16", -1e39, 1e38, "float32"),
        ("F64", "float32", 1e39, -3.4e38, "float64"),
    ],
)
def test_refuses_to_make_a_finite_value_infinite(
    tmp_path: Path, source: str, target: str, too_large: float, fits: float, advice: str
) -> None:
    array = np.full(LONG, fits, DTYPES[source])
    checkpoint = stored(tmp_path, array)
    assert all_finite(checkpoint.read("w", target))
    array[[LONG - 3, LONG - 1]] = too_large
    checkpoint = stored(tmp_path, array)
    facts = (tmp_path / SINGLE, "'w'", "2", LONG, target, LONG - 3, advice)
    for allow_nan in (False, True):
        with refuses(CheckpointError, *facts):
            checkpoint.read("w", target, allow_nan=allow_nan)


@pytest.mark.parametrize("dtype", ["I8", "I64", "BOOL", "F8_E4M3", "U8"])
def test_refuses_weights_that_are_no_plain_floats(tmp_path: Path, dtype: str) -> None:
    size = 64 if dtype == "I64" else 8
    (tmp_path / SINGLE).write_bytes(file_bytes({"w": entry(dtype, [8], 0, size)}, bytes(size)))
    with refuses(CheckpointError, tmp_path / SINGLE, "'w'", dtype, "BF16", "F16", "F32", "F64", "unquantised"):
        SafetensorsFolder.open(tmp_path).read("w", np.float32)


@pytest.mark.parametrize(
    ("out", "facts"),
    [
        (np.empty((3, 2), np.float32), ("'w'", "(2, 3)", "(3, 2)")),
        (np.empty((2, 3), np.int32), ("int32", "bfloat16", "float16", "float32", "float64")),
        (np.empty((2, 3), ">f4"), (">f4",)),
        (np.empty((3, 2), np.float32).T, ("writable", "C-contiguous")),
        (np.broadcast_to(np.float32(0), (2, 3)), ("writable", "C-contiguous")),
        (np.frombuffer(bytes(24), np.float32).reshape(2, 3), ("writable", "C-contiguous")),
    ],
)
def test_refuses_an_array_that_it_cannot_fill(tmp_path: Path, out: np.ndarray, facts: tuple[str, ...]) -> None:
    checkpoint = stored(tmp_path, np.ones((2, 3), np.float32))
    with refuses(ValueError, *facts):
        checkpoint.read_into("w", out)


@pytest.mark.parametrize(
    ("source", "target", "allow_nan"),
    [("BF16", "bfloat16", False), ("F32", "bfloat16", False), ("BF16", "float32", False), ("F32", "float16", True)],
)
@pytest.mark.parametrize(("bad", "size"), [(0.0, 1 << 26), (np.nan, 1 << 24)], ids=["finite", "nan"])
def test_temporary_memory_does_not_grow_with_the_tensor(
    tmp_path: Path, source: str, target: str, allow_nan: bool, bad: float, size: int
) -> None:
    itemsize = DTYPES[source].itemsize
    raw = file_bytes({"w": entry(source, [size // itemsize], 0, size)})
    with (tmp_path / SINGLE).open("wb") as file:
        file.write(raw)
        if np.isnan(bad):
            file.write(np.full(size // itemsize, bad, DTYPES[source]).tobytes())
        file.truncate(len(raw) + size)  # zeros, without writing them
    checkpoint = SafetensorsFolder.open(tmp_path)
    out = np.empty(size // itemsize, target)
    tracemalloc.start()
    try:
        if np.isnan(bad) and not allow_nan:
            with pytest.raises(CheckpointError, match=f"holds {out.size} NaN"):
                checkpoint.read_into("w", out)
        else:
            checkpoint.read_into("w", out, allow_nan=allow_nan)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The chunk itself, and for values that are not finite two masks of a byte per element.
    assert peak < 2.5 * BLOCK_BYTES
