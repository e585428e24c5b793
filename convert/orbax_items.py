"""One Orbax checkpoint: written by Orbax, uncompressed and in chunks of our choice; arrays and parts of them read back.

Importing this module imports Orbax and JAX.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from convert.durable import full, is_full
from convert.errors import CheckpointError
from convert.reading import Index

# A chunk is what is read at least. 8 parts serve meshes of 2, 4 and 8 devices exactly; more where a chunk would be
# large.
# Also the size of the files: a file is written at once, and the disk begins only then.
CHUNK_BYTES = 16 << 20
_SMALLEST_CHUNK_BYTES = 1 << 20
_PARTS = 8
# No cache: every chunk is read once. Few copies at a time, because each takes memory of the size of a chunk.
_CONTEXT = {
    "cache_pool": {"total_bytes_limit": 0},
    "data_copy_concurrency": {"limit": 2},
    "file_io_concurrency": {"limit": 4},
}


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


class _ChunkedArrays(ocp.type_handlers.NumpyHandler):
    """Orbax's handler of numpy arrays, with chunks as given: Orbax's own choice divides the longest axis.

    The arrays are not changed while they are written, so they need not be copied before.
    """

    def __init__(self, chunks: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._chunks = chunks

    async def _open_and_write(self, value: np.ndarray, tspec: dict[str, Any], ts_context: Any) -> None:
        key = tspec["kvstore"]["path"].rstrip("/")
        tspec["metadata"]["chunks"] = list(self._chunks[key])
        await super()._open_and_write(value, tspec, ts_context)


def write_orbax(path: Path, arrays: Mapping[str, np.ndarray], split_axes: Mapping[str, int]) -> None:
    """Saves `arrays` as the new Orbax checkpoint `path`. One call at a time.

    Raises:
        CheckpointError: when the system refuses to write.
    """
    chunks = {key: chunk_shape(array.shape, array.itemsize, split_axes[key]) for key, array in arrays.items()}
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, _ChunkedArrays(chunks)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # there are none, but Orbax warns when nobody handles them
    )
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    try:
        with _quiet_orbax(), ocp.Checkpointer(handler) as checkpointer:
            save = ocp.args.PyTreeSave(dict(arrays), ocdbt_target_data_file_size=CHUNK_BYTES)
            checkpointer.save(path.absolute(), args=save)
    except ValueError as error:  # how tensorstore reports whatever the system refuses
        message = str(error).partition("\n")[0]
        raise CheckpointError(full(path.parent) if is_full(message) else f"cannot write {path}: {message}") from error


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Keeps the tracebacks off stderr that Orbax logs from its threads: the error itself comes to the caller."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def open_array(item: Path, key: str) -> Any:
    """The tensorstore of array `key` of the Orbax checkpoint `item`: shape, dtype and chunks, no values yet.

    Raises:
        CheckpointError: when it is missing or damaged.
    """
    spec = {
        "driver": "zarr",
        # A path and not a URL, in which some characters would mean something else.
        "kvstore": {"driver": "ocdbt", "base": {"driver": "file", "path": f"{item.resolve()}/"}, "path": f"{key}/"},
    }
    try:
        return ts.open(spec, open=True, read=True, context=ts.Context(_CONTEXT)).result()
    except ValueError as error:
        raise CheckpointError(_unreadable(item, key, error)) from error


def read_array(item: Path, key: str, out: np.ndarray, index: Index | None = None) -> int:
    """Fills `out`, of the stored dtype, with the array or with its part `index`; returns the bytes of the chunks read.

    Raises:
        CheckpointError: when the array is missing or damaged, or has another shape or dtype than `out`.
    """
    array = open_array(item, key)
    index = tuple(slice(0, size) for size in array.shape) if index is None else index
    chosen = array[index]
    if tuple(chosen.shape) != out.shape or array.dtype.numpy_dtype != out.dtype:
        raise CheckpointError(
            f"{item}: array {key!r} is {array.dtype.name} {list(array.shape)}, of which {list(out.shape)} "
            f"in {out.dtype.name} was expected; convert again with --restart"
        )
    try:
        ts.array(out, copy=False, write=True).write(chosen.translate_to[(0,) * out.ndim]).result()
    except ValueError as error:
        raise CheckpointError(_unreadable(item, key, error)) from error
    return _chunk_bytes(array.shape, array.chunk_layout.read_chunk.shape, index) * out.itemsize


def _chunk_bytes(shape: tuple[int, ...], chunk: tuple[int, ...], index: Index) -> int:
    """Elements of the chunks that `index` touches; a chunk at the end is stored whole."""
    elements = 1
    for size, step, part in zip(shape, chunk, index, strict=True):
        start, stop, _ = part.indices(size)
        elements *= step * (-(-stop // step) - start // step) if stop > start else 0
    return elements


def _unreadable(item: Path, key: str, error: ValueError) -> str:
    return (
        f"{item}: array {key!r} cannot be read ({str(error).partition(chr(10))[0]}); it is missing or damaged: "
        "convert again with --restart"
    )
