"""What is known of a tensor before it is read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moejax._convert.dtypes import FLOAT_DTYPES, ITEM_BITS
from moejax._convert.errors import CheckpointError

Index = tuple[slice, ...]  # a part of a tensor: one slice of step 1 per axis


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor: its `dtype` as safetensors spells it (BF16, ...), and the file or Orbax checkpoint that holds it.

    stored_name: its name there.  leading, first_row: where it is part of a larger tensor, the place of the part: one
    number for each axis that the part lacks, and the first row on the axis after those.
    paired_rows: where rows come in groups of so many, and in the file the two halves of each group lie interleaved: row
    i of the first half is row 2 i there, row i of the second 2 i + 1. 0: they lie there in their order.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    stored_name: str
    leading: tuple[int, ...] = ()
    first_row: int = 0
    paired_rows: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BITS[self.dtype] // 8

    def stored_index(self, index: Index) -> Index:
        """The place in the stored tensor of the part of this one at `index`."""
        lead = tuple(slice(number, number + 1) for number in self.leading)
        if not self.first_row:
            return lead + index
        rows = slice(index[0].start + self.first_row, index[0].stop + self.first_row)
        return (*lead, rows, *index[1:])


def covering_groups(info: TensorInfo, index: Index) -> tuple[Index, slice]:
    """Of a tensor with paired rows: the groups that a part lies in, and where its rows are in them once in order."""
    rows, size = index[0], info.paired_rows
    first, last = rows.start // size * size, -(-rows.stop // size) * size
    return (slice(first, last), *index[1:]), slice(rows.start - first, rows.stop - first)


def in_order(info: TensorInfo, groups: np.ndarray) -> np.ndarray:
    """Whole groups of paired rows, as they are in the file, in the order in which they are meant."""
    rows, *rest = groups.shape
    halves = groups.reshape(rows // info.paired_rows, info.paired_rows // 2, 2, *rest)
    return halves.swapaxes(1, 2).reshape(rows, *rest)


def float_dtype(info: TensorInfo) -> np.dtype:
    """The numpy dtype of a tensor that holds floating-point weights.

    Raises:
        CheckpointError: for any other dtype.
    """
    if info.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{info.file}: tensor {info.name!r} has dtype {info.dtype}, expected one of {', '.join(FLOAT_DTYPES)}; "
            "integer and quantised weights are not supported: use the unquantised checkpoint"
        )
    return FLOAT_DTYPES[info.dtype]


def ranges_of(info: TensorInfo, index: Index | None) -> tuple[range, ...]:
    """The part of a tensor at `index`, axis by axis; None is all of it.

    Raises:
        ValueError: when `index` is not one slice of step 1 per axis.
    """
    if index is None:
        return tuple(range(size) for size in info.shape)
    if len(index) != len(info.shape):
        raise ValueError(f"tensor {info.name!r} has shape {info.shape}, the index has {len(index)} axes")
    ranges = tuple(range(size)[part] for size, part in zip(info.shape, index, strict=True))
    if any(one.step != 1 for one in ranges):
        raise ValueError(f"tensor {info.name!r}: slices must have step 1, got {index}")
    return ranges


def index_of(ranges: Sequence[range]) -> Index:
    """A part as slices with both ends."""
    return tuple(slice(one.start, one.stop) for one in ranges)
