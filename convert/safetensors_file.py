"""One safetensors file, opened by the library, which checks the header against the size of the file.

https://huggingface.co/docs/safetensors/index#format. The library maps the file into memory; values are copied out of
the map at once, since JAX on a CPU may use an array's memory for as long as it lives.
"""

import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from moejax._convert.dtypes import ITEM_BITS, fits_numpy
from moejax._convert.errors import CheckpointError, shown
from moejax._convert.files import DOWNLOADED, JSON_LIMIT, NOT_FINITE, Advice, opened, parse_object, reading
from moejax._convert.reading import BLOCK_BYTES, CheckedCopy, blocks
from moejax._convert.tensor_info import Index, TensorInfo, covering_groups, float_dtype, in_order

LENGTH_BYTES = 8  # of the number of bytes of the header, at the start of the file


class SafetensorsFiles:
    """Safetensors files, each opened once. Threads may use them at the same time.

    advice: what helps where one is damaged.
    """

    def __init__(self, advice: Advice = DOWNLOADED) -> None:
        self._advice = advice
        self._lock = threading.Lock()
        self._opened: dict[Path, tuple[tuple[int, int], safe_open]] = {}

    def tensors(self, file: Path) -> dict[str, TensorInfo]:
        """The tensors of `file` by name, of which nothing has been read.

        Raises:
            CheckpointError: when it cannot be read, or is no sound safetensors file.
        """
        opened_file = self._open(file)
        return {name: _tensor_info(file, name, opened_file, self._advice) for name in opened_file.keys()}

    def metadata(self, file: Path) -> dict[str, str]:
        """What the header of `file` says beside its tensors, with the errors of `tensors`."""
        return self._open(file).metadata() or {}

    def check_described(self, info: TensorInfo) -> None:
        """Raises CheckpointError when the header describes a tensor as another than `info`."""
        try:
            found = _tensor_info(info.file, info.stored_name, self._open(info.file), self._advice)
        except SafetensorError as error:
            raise CheckpointError(
                f"{info.file}: lacks tensor {info.stored_name!r} ({error}); {self._advice.damaged}"
            ) from error
        if (found.dtype, found.shape) != (info.dtype, info.shape):
            raise CheckpointError(
                f"{info.file}: tensor {info.stored_name!r} is described as {found.dtype} {list(found.shape)}, expected "
                f"{info.dtype} {list(info.shape)}; {self._advice.damaged}"
            )

    def read_into(self, info: TensorInfo, ranges: Sequence[range], out: np.ndarray, *, allow_nan: bool) -> int:
        """Fills `out` with the part of a tensor at `ranges`, rounding to its dtype; returns the bytes read.

        Temporary memory: `BLOCK_BYTES`, however large the tensor.

        Raises:
            CheckpointError: when the file has gone or is another one now, the tensor is not of floats, holds NaN or
                infinity (unless `allow_nan`), or finite values too large for `out`.
            ValueError: when `out` is no array to fill with this part.
        """
        itemsize = float_dtype(info).itemsize
        copy = CheckedCopy(info, ranges, out, allow_nan=allow_nan)
        # The library refuses to slice an empty tensor.
        for index in blocks(ranges, BLOCK_BYTES // itemsize) if all(ranges) else ():
            try:
                copy.add(self._part(info, index))
            except SafetensorError as error:
                raise CheckpointError(
                    f"{info.file}: cannot read tensor {info.name!r} ({error}); {self._advice.damaged}"
                ) from error
        copy.finish(NOT_FINITE)
        return out.size * itemsize

    def _part(self, info: TensorInfo, index: Index) -> np.ndarray:
        stored = self._open(info.file).get_slice(info.stored_name)
        if not info.paired_rows:
            return stored[info.stored_index(index)]
        groups, rows = covering_groups(info, index)
        return np.ascontiguousarray(in_order(info, stored[groups])[rows])

    def _open(self, file: Path) -> safe_open:
        with reading(file):
            status = file.stat()
        stamp = status.st_size, status.st_ino
        with self._lock:
            if file not in self._opened:
                self._opened[file] = stamp, _opened(file, self._advice.damaged)
            known, opened_file = self._opened[file]
        if stamp[0] < known[0]:  # reading from the map would end the process
            raise CheckpointError(
                f"{file} was truncated after it was opened: it had {known[0]} bytes, now {stamp[0]}; "
                f"{self._advice.damaged}"
            )
        if stamp != known:
            raise CheckpointError(f"{file} is another file than the one that was opened; open the folder again")
        return opened_file


def _opened(file: Path, again: str) -> safe_open:
    with opened(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        begin, header = _read_header(file, stream, size, again)
    try:
        with reading(file):
            return safe_open(file, framework="numpy")
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        if "not fully covered" in reason:  # which it says when the header itself is sound
            entries: Any = [entry for name, entry in header.items() if name != "__metadata__"]
            stop = begin + max((entry["data_offsets"][1] for entry in entries), default=0)
            lacks = f"it has {size} bytes, but its tensors end at byte {stop}"
            raise CheckpointError(
                f"{file} {'is truncated: ' if size < stop else 'is damaged: '}{lacks}; {again}"
            ) from error
        raise CheckpointError(f"{file} is no sound safetensors file ({reason}); {again}") from error


def _read_header(file: Path, stream: io.BufferedReader, size: int, again: str) -> tuple[int, dict[str, object]]:
    """Where the header ends, and the header: to say what is wrong with a file of another kind, a truncated one, or one
    that has a tensor twice, which the library does not refuse. All else is the library's to check."""
    start = stream.peek(2 * LENGTH_BYTES)[: 2 * LENGTH_BYTES]
    length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
    if size < LENGTH_BYTES + 2:
        raise CheckpointError(f"{file} is truncated: it has {size} bytes, a safetensors file has at least 10; {again}")
    # Anything else that a download may leave under this name (a web page, a pickle, a zip) differs in this byte.
    if start[LENGTH_BYTES : LENGTH_BYTES + 1] not in (b"{", b" "):
        raise CheckpointError(f"{file} is no safetensors file (it starts with {start}); {again}")
    if length > JSON_LIMIT:
        raise CheckpointError(
            f"{file}: a header of {length} bytes is announced, at most {JSON_LIMIT} are read; {again}"
        )
    begin = LENGTH_BYTES + length
    if begin > size:
        raise CheckpointError(
            f"{file} is truncated: it has {size} bytes, its header alone ends at byte {begin}; {again}"
        )
    return begin, parse_object(f"{file}: its header", stream.read(length), again)


def _tensor_info(file: Path, name: str, opened_file: safe_open, advice: Advice) -> TensorInfo:
    part = opened_file.get_slice(name)
    shape, dtype = tuple(part.get_shape()), part.get_dtype()
    if dtype not in ITEM_BITS:
        raise CheckpointError(
            f"{file}: tensor {name!r} has the unknown dtype {shown(dtype)}, expected one of {', '.join(ITEM_BITS)}"
        )
    if not fits_numpy(shape):
        raise CheckpointError(f"{file}: tensor {name!r} has shape {shown(shape)}, too large for numpy; {advice.made}")
    return TensorInfo(name=name, shape=shape, dtype=dtype, file=file, stored_name=name)
