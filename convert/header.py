"""The header of one safetensors file: which tensors it holds, of what shape and dtype, and where their bytes are.

A file is 8 bytes (little-endian) with the length of the header, the header in JSON, then the tensors' bytes without
gaps: https://huggingface.co/docs/safetensors/index#format. Nothing in it is believed before it is checked against the
size of the file, and no byte of a tensor is read.
"""

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

from convert.dtypes import ITEM_BITS
from convert.errors import CheckpointError, shown
from convert.files import AGAIN, JSON_LIMIT, opened, parse_object, read_start

LENGTH_BYTES = 8
FIELDS = {"dtype", "shape", "data_offsets"}
# What numpy can describe: 64 axes, and strides that fit a signed 64-bit number of bytes (8 per element at most).
MOST_AXES = 64
MOST_ELEMENTS = 2**63 // 8 - 1


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor of a safetensors file: its `dtype` as the file spells it, and bytes `start` to `stop` of `file`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of `file` by name, in the order of their bytes.

    Raises:
        CheckpointError: when the file cannot be read, is no safetensors file, is truncated, or its header contradicts
            itself or the size of the file.
    """
    with opened(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        raw = _header_bytes(file, stream, size)
    header = parse_object(f"{file}: its header", raw)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{file}: __metadata__ is {shown(metadata)}, expected an object of strings; {AGAIN}")
    begin = LENGTH_BYTES + len(raw)
    tensors = [_tensor_info(file, name, entry, begin) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    _check_layout(file, tensors, begin, size)
    return {tensor.name: tensor for tensor in tensors}


def _header_bytes(file: Path, stream: io.FileIO, size: int) -> bytes:
    start = read_start(file, stream, 2 * LENGTH_BYTES + 8)
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if size < LENGTH_BYTES + 2:
        raise CheckpointError(f"{file} has {size} bytes, a safetensors file has at least 10; {AGAIN}")
    # Anything else that a download may leave under this name (a web page, a pickle, a zip) differs in this byte.
    if start[LENGTH_BYTES : LENGTH_BYTES + 1] not in b"{ \t\r\n":
        raise CheckpointError(f"{file} is no safetensors file (it starts with {start[:16]}); {AGAIN}")
    if length > JSON_LIMIT:
        raise CheckpointError(
            f"{file}: a header of {length} bytes is announced, at most {JSON_LIMIT} are read; {AGAIN}"
        )
    if length > size - LENGTH_BYTES:
        raise CheckpointError(
            f"{file} is truncated: it has {size} bytes, its header alone ends at byte {LENGTH_BYTES + length}; {AGAIN}"
        )
    stream.seek(LENGTH_BYTES)
    return read_start(file, stream, length)


def _tensor_info(file: Path, name: str, entry: object, begin: int) -> TensorInfo:
    """The checked entry of one tensor; `begin` is the byte of the file that offsets count from."""
    where = f"{file}: tensor {name!r}"
    if not isinstance(entry, dict) or entry.keys() != FIELDS:
        got = sorted(entry) if isinstance(entry, dict) else entry
        raise CheckpointError(f"{where} is described by {shown(got)}, expected {sorted(FIELDS)}; {AGAIN}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise CheckpointError(
            f"{where} has the unknown dtype {shown(dtype)}, expected one of {', '.join(ITEM_BITS)}; {AGAIN}"
        )
    if not _are_sizes(shape) or len(shape) > MOST_AXES or math.prod(size or 1 for size in shape) > MOST_ELEMENTS:
        raise CheckpointError(
            f"{where} has shape {shown(shape)}, expected at most {MOST_AXES} sizes that memory could hold; {AGAIN}"
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has data_offsets {shown(offsets)}, expected [first, last + 1]; {AGAIN}")
    start, stop = offsets
    bits = math.prod(shape) * ITEM_BITS[dtype]
    if bits != 8 * (stop - start):
        raise CheckpointError(
            f"{where} takes {stop - start} bytes in the file, but shape {shape} in {dtype} needs {bits / 8:g}; {AGAIN}"
        )
    return TensorInfo(name=name, shape=tuple(shape), dtype=dtype, file=file, start=begin + start, stop=begin + stop)


def _are_sizes(value: object) -> bool:
    """Whether `value` is a list of integers (JSON's true and 1.0 are none) between 0 and what a file offset can be."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_layout(file: Path, tensors: list[TensorInfo], begin: int, size: int) -> None:
    """Checks that the tensors, in order of their bytes, fill the file from `begin` to its end, each byte once."""
    stop, before = begin, "the header"
    for tensor in tensors:
        if tensor.start != stop:
            how = "overlaps" if tensor.start < stop else "leaves a gap after"
            raise CheckpointError(
                f"{file}: tensor {tensor.name!r} {how} {before}: "
                f"it starts at byte {tensor.start}, expected {stop}; {AGAIN}"
            )
        stop, before = tensor.stop, f"tensor {tensor.name!r}"
        if stop > size:
            raise CheckpointError(
                f"{file} is truncated: it has {size} bytes, but tensor {tensor.name!r} ends at byte {stop} "
                f"and the last one at byte {max(tensor.stop for tensor in tensors)}; {AGAIN}"
            )
    if stop != size:
        raise CheckpointError(f"{file} has {size} bytes, but its tensors end at byte {stop}; {AGAIN}")
