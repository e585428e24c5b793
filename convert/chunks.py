"""An array as files of a zarr (version 2, uncompressed), which is how Orbax stores it: one file for each chunk.

A chunk's file holds its values and nothing else, in C order, little-endian; `.zarray` beside it describes the array:
https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html. Chunks divide one axis, the one that tensor parallelism
divides, so a device reads whole chunks, and a chunk that is read has its checksum compared.
"""

import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.checksums import Sums, array_checksum, joined_checksum
from convert.direct import aligned_empty, writer
from convert.dtypes import FLOAT_DTYPES
from convert.errors import CheckpointError, shown
from convert.files import JSON_LIMIT, fill, opened, parse_object, read_start
from convert.reading import Index

METADATA = ".zarray"
# A chunk is what is read at least. 8 parts serve meshes of 2, 4 and 8 devices exactly; more where a chunk would be
# large.
CHUNK_BYTES = 16 << 20
_SMALLEST_CHUNK_BYTES = 1 << 20
_PARTS = 8
_ZARR_DTYPES = {"BF16": "bfloat16", **{name: dtype.str for name, dtype in FLOAT_DTYPES.items() if name != "BF16"}}
_AGAIN = "it is damaged: convert again with --restart"


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


@dataclass(frozen=True)
class Grid:
    """The chunks of an array: all of one shape, of which the last may reach past the array's end along `axis`.

    An array of no axes is one of a single element here: its file has the same name.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]

    @property
    def axis(self) -> int:
        """The axis that is divided; the first where none is."""
        return next((axis for axis, size in enumerate(self.shape) if self.chunk[axis] < size), 0)

    @property
    def count(self) -> int:
        return -(-self.shape[self.axis] // self.chunk[self.axis]) if math.prod(self.shape) else 0

    def name(self, number: int) -> str:
        """The file of a chunk."""
        return ".".join(str(number if axis == self.axis else 0) for axis in range(len(self.shape)))

    def rows(self, number: int) -> range:
        """What a chunk holds of the divided axis."""
        step = self.chunk[self.axis]
        return range(number * step, min((number + 1) * step, self.shape[self.axis]))

    def part(self, rows: range) -> Index:
        """These rows of the divided axis, and all of the others."""
        return tuple(
            slice(rows.start, rows.stop) if axis == self.axis else slice(0, size)
            for axis, size in enumerate(self.shape)
        )


def write_chunks(folder: Path, values: np.ndarray, chunk: tuple[int, ...]) -> Sums:
    """Writes the files of all chunks of `values` into the array's folder; returns their checksums.

    Temporary memory: one chunk. The caller syncs.
    """
    values = values.reshape(values.shape or (1,))
    grid = Grid(values.shape, chunk := chunk or (1,))
    scratch: np.ndarray | None = None
    found: list[tuple[str, int]] = []
    for number in range(grid.count):
        part = values[grid.part(grid.rows(number))]
        if part.shape != chunk or not part.flags.c_contiguous:
            if scratch is None:
                scratch = aligned_empty(math.prod(chunk) * values.itemsize).view(values.dtype).reshape(chunk)
            if part.shape != chunk:
                scratch.fill(0)
            scratch[tuple(slice(0, size) for size in part.shape)] = part
            part = scratch
        found.append((array_checksum(part), part.nbytes))
        with writer(folder / grid.name(number), new=True) as file:
            file.write(part, 0)
    parts = tuple(checksum for checksum, _ in found)
    in_order = grid.axis == 0 and sum(nbytes for _, nbytes in found) == values.nbytes
    return Sums(parts, joined_checksum(found) if in_order else None)


def read_chunks(
    folder: Path, shape: tuple[int, ...], dtype: str, out: np.ndarray, index: Index, checksums: Sequence[str] | None
) -> int:
    """Fills `out`, of the stored dtype, with the part `index` of an array; returns the bytes of the chunks read.

    Every chunk that the part touches is read whole, and compared with its checksum unless there are None.

    Raises:
        CheckpointError: when a file is missing or damaged, or the array is another than `shape` and `dtype` say.
    """
    grid = read_grid(folder, shape, dtype)
    if checksums is not None and len(checksums) != grid.count:
        raise CheckpointError(f"{folder} has {grid.count} chunks, {len(checksums)} are in the manifest; {_AGAIN}")
    ranges = [range(size)[part] for part, size in zip(index, shape, strict=True)] or [range(1)]
    out = out.reshape(out.shape or (1,))
    count = 0
    scratch: np.ndarray | None = None
    for number, source, target in _overlaps(grid, ranges):
        view = out[target]
        direct = view.shape == grid.chunk and view.flags.c_contiguous
        if not direct and scratch is None:
            scratch = np.empty(grid.chunk, out.dtype)
        memory = view if direct else scratch
        assert memory is not None
        _read_chunk(folder / grid.name(number), memory)
        if checksums is not None and (got := array_checksum(memory)) != checksums[number]:
            raise CheckpointError(
                f"{folder / grid.name(number)} was damaged after it was converted: its checksum is {got}, "
                f"manifest.json says {checksums[number]}; convert again with --restart"
            )
        if not direct:
            view[...] = memory[source]
        count += memory.nbytes
    return count


def read_grid(folder: Path, shape: tuple[int, ...], dtype: str) -> Grid:
    """The chunks of the array in `folder`, as its metadata says.

    Raises:
        CheckpointError: when that is missing or damaged, or describes anything but an uncompressed array of this shape
            and dtype, divided along one axis.
    """
    path = folder / METADATA
    with _opened(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        raw = parse_object(str(path), read_start(path, stream, min(size, JSON_LIMIT)))
    chunk = raw.get("chunks")
    expected = _metadata(shape, dtype, chunk)
    if wrong := [key for key, value in expected.items() if raw.get(key, "nothing") != value]:
        raise CheckpointError(
            f"{path}: {wrong[0]} is {shown(raw.get(wrong[0]))}, expected {shown(expected[wrong[0]])}; {_AGAIN}"
        )
    sizes = chunk if isinstance(chunk, list) and all(type(size) is int for size in chunk) else []
    fits = len(sizes) == len(shape) and all(0 < size <= max(1, most) for size, most in zip(sizes, shape, strict=True))
    if not fits or sum(size < most for size, most in zip(sizes, shape, strict=True)) > 1:
        raise CheckpointError(f"{path}: chunks is {shown(chunk)}, expected one divided axis of {list(shape)}; {_AGAIN}")
    return Grid(shape or (1,), tuple(sizes) or (1,))


def _metadata(shape: tuple[int, ...], dtype: str, chunk: Any) -> dict[str, Any]:
    """What Orbax writes about such an array, but for the fill value: every chunk is there."""
    return {
        "zarr_format": 2,
        "shape": list(shape),
        "chunks": chunk,
        "dtype": _ZARR_DTYPES[dtype],
        "compressor": None,
        "filters": None,
        "order": "C",
        "dimension_separator": ".",
    }


def _overlaps(grid: Grid, ranges: Sequence[range]) -> Iterator[tuple[int, Index, Index]]:
    """Every chunk that the part touches: its number, the part's place in the chunk, and the chunk's in the part."""
    if not all(ranges):
        return
    wanted = ranges[grid.axis]
    step = grid.chunk[grid.axis]
    for number in range(wanted.start // step, (wanted.stop - 1) // step + 1):
        rows = grid.rows(number)
        first, last = max(rows.start, wanted.start), min(rows.stop, wanted.stop)
        source = [slice(one.start, one.stop) for one in ranges]
        target = [slice(0, len(one)) for one in ranges]
        source[grid.axis] = slice(first - rows.start, last - rows.start)
        target[grid.axis] = slice(first - wanted.start, last - wanted.start)
        yield number, tuple(source), tuple(target)


@contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} is missing; convert again with --restart")
    with opened(path) as stream:
        yield stream


def _read_chunk(path: Path, memory: np.ndarray) -> None:
    with _opened(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != memory.nbytes or fill(stream, memory.reshape(-1).view(np.uint8)) != size:
            raise CheckpointError(f"{path} has {size} bytes, expected {memory.nbytes}; {_AGAIN}")
