"""An array of an Orbax checkpoint as a zarr folder, written and read by tensorstore.

Chunks divide one axis, the one that tensor parallelism divides, so that a device reads whole chunks. New ones are zarr
version 3, uncompressed, where tensorstore puts a CRC-32C at the end of each chunk and compares it whenever it reads the
chunk. Conversions of format version 2 have zarr version 2, without those checksums.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from moejax._convert.durable import full, is_full
from moejax._convert.errors import CheckpointError
from moejax._convert.files import RECONVERT
from moejax._convert.tensor_info import TensorInfo, float_dtype, index_of

# A chunk is what is read at least. 8 parts serve meshes of 2, 4 and 8 devices exactly; more where a chunk would be
# large.
CHUNK_BYTES = 16 << 20
_SMALLEST_CHUNK_BYTES = 1 << 20
_PARTS = 8
_DETAILS = re.compile(r" \[(?:tensorstore_spec|source locations|os_error_code)=")
_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


def chunk_shape(shape: tuple[int, ...], itemsize: int, split_axis: int) -> tuple[int, ...]:
    """The chunks of an array, divided along `split_axis` only: a power of two of equal parts, where its size allows."""
    if not shape:
        return ()
    nbytes = math.prod(shape) * itemsize
    parts = 1
    while nbytes > parts * CHUNK_BYTES or (parts < _PARTS and nbytes > parts * 2 * _SMALLEST_CHUNK_BYTES):
        parts *= 2
    rows = max(1, -(-shape[split_axis] // parts))
    return tuple(rows if axis == split_axis else max(1, size) for axis, size in enumerate(shape))


def write_array(folder: Path, values: np.ndarray, split_axis: int) -> None:
    """Writes an array into `folder`, in place of one that is there. The caller syncs.

    Raises:
        CheckpointError: when the system refuses.
    """
    chunks = chunk_shape(values.shape, values.itemsize, split_axis)
    grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
    spec = _spec(folder, "zarr3") | {
        "dtype": values.dtype.name,
        "metadata": {"shape": values.shape, "chunk_grid": grid, "codecs": _CODECS},
        "store_data_equal_to_fill_value": True,
    }
    try:
        ts.open(spec, create=True, delete_existing=True).result().write(values).result()
    except ValueError as error:  # how tensorstore reports whatever the system refuses
        raise CheckpointError(cannot_write(folder, error)) from error


def read_array(folder: Path, info: TensorInfo, ranges: Sequence[range], out: np.ndarray) -> int:
    """Fills `out`, of the stored dtype, with the part of an array at `ranges`; returns the bytes of the chunks read.

    Raises:
        CheckpointError: when a chunk is missing or damaged, or the array is another than `info` says.
    """
    with _reading(folder):
        stored = _open(folder)
        chunks = _checked_chunks(folder, info, stored)
        ts.array(out).write(stored[index_of(ranges)]).result()
    if not all(ranges):
        return 0
    touched = math.prod((one[-1] // size - one[0] // size + 1) * size for one, size in zip(ranges, chunks, strict=True))
    return touched * out.itemsize


def check_array(folder: Path, info: TensorInfo) -> None:
    """Reads every chunk of an array, one at a time, and keeps none; with the errors of `read_array`."""
    with _reading(folder):
        stored = _open(folder)
        chunks = _checked_chunks(folder, info, stored)
        starts = (range(0, size, step) for size, step in zip(info.shape, chunks, strict=True))
        for start in itertools.product(*starts):
            part = zip(start, chunks, info.shape, strict=True)
            stored[tuple(slice(at, min(at + step, size)) for at, step, size in part)].read().result()


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # how tensorstore reports whatever is wrong
        raise CheckpointError(
            f"{folder} was damaged after it was converted, or cannot be read: {reason_of(error)}; {RECONVERT}"
        ) from error


def _open(folder: Path) -> ts.TensorStore:
    driver = "zarr" if (folder / ".zarray").exists() else "zarr3"
    return ts.open(_spec(folder, driver), open=True, read=True).result()


def cannot_write(path: Path, error: ValueError) -> str:
    """The message for what the system refused a library that writes into `path`."""
    reason = reason_of(error)
    return full(path) if is_full(reason) else f"cannot write {path}: {reason}; check the folder and the disk"


def _spec(folder: Path, driver: str) -> dict[str, Any]:
    kvstore = {
        "driver": "file",
        "path": f"{folder.absolute()}/",
        "file_io_mode": {"mode": "memmap"},  # chunks that are read need no memory of their own
        "file_io_sync": False,  # the files of an item are synced together
    }
    # Without a word, tensorstore takes a missing chunk for zeros.
    return {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False}


def _checked_chunks(folder: Path, info: TensorInfo, stored: ts.TensorStore) -> tuple[int, ...]:
    """The shape of the chunks, when the array's metadata is as expected, and reading needs no more memory than it."""
    expected = float_dtype(info)
    dtype = stored.dtype.numpy_dtype
    chunks = tuple(size or 0 for size in stored.chunk_layout.write_chunk.shape or ())
    fits = len(chunks) == len(info.shape) and all(
        0 < size <= max(1, most) for size, most in zip(chunks, info.shape, strict=True)
    )
    if stored.shape != info.shape or dtype != expected or not fits:
        raise ValueError(
            f"its metadata has shape {list(stored.shape)}, dtype {dtype} and chunks {list(chunks)}, "
            f"expected {list(info.shape)}, {expected} and chunks inside it"
        )
    return chunks


def reason_of(error: Exception) -> str:
    """The first line of a message, without tensorstore's specification of the array and the places of its source."""
    return _DETAILS.split(str(error).partition("\n")[0])[0]
