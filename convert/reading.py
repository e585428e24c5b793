"""The bytes of one tensor, into memory that the caller owns: converted, checked, in bounded chunks."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from convert.dtypes import FLOAT_DTYPES
from convert.errors import CheckpointError
from convert.files import AGAIN, fill, opened
from convert.header import TensorInfo

# Bounds the temporary memory of a conversion; small enough that a chunk is still in the processor's cache when it is
# checked and converted.
CHUNK_BYTES = 1 << 20
Index = tuple[slice, ...]  # a part of a tensor: one slice of step 1 per axis
WIDER = {"float16": "bfloat16", "bfloat16": "float32", "float32": "float64"}


def source_dtype(info: TensorInfo) -> np.dtype:
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


def read_into(info: TensorInfo, out: np.ndarray, index: Index | None = None, *, allow_nan: bool = False) -> int:
    """Reads the tensor, or the part of it at `index`, into `out`, rounding to its dtype; returns the bytes read.

    `out` has any float dtype, the shape of what is read, and is C-contiguous. Only bytes of the part are read.
    Temporary memory: `CHUNK_BYTES`, and none when the dtypes are equal and all values finite.

    Raises:
        CheckpointError: when the file has changed, the dtype is none of bf16, f16, f32, f64, a value is NaN or infinite
            (unless `allow_nan`), or a finite value is too large for `out`. `out` then holds a part of the tensor.
        ValueError: when `out` has another shape, is not contiguous, not writable, or no float array, or when `index`
            does not lie in the tensor.
    """
    source = source_dtype(info)
    runs = Runs.of(info, index)
    _check_target(info, out, runs.shape)
    flat = out.reshape(-1)
    step = CHUNK_BYTES // source.itemsize
    scratch = None if out.dtype == source else np.empty(min(step, flat.size), source)
    not_finite, too_large = Found(), Found()
    # No warnings: what does not fit becomes infinite, and is found; numpy warns of signalling NaNs even in isfinite.
    with np.errstate(all="ignore"), opened(info.file) as stream:
        for begin in range(0, flat.size, step):
            target = flat[begin : begin + step]
            chunk = target if scratch is None else scratch[: target.size]
            _fill_chunk(stream, chunk, info, runs, begin)
            if not allow_nan and not all_finite(chunk):
                not_finite.add(begin, ~np.isfinite(chunk))
            if scratch is not None:
                np.copyto(target, chunk, casting="unsafe")
                if not all_finite(target):
                    too_large.add(begin, np.isinf(target) & np.isfinite(chunk))
    if not_finite.count:
        raise CheckpointError(
            f"{info.file}: tensor {info.name!r} holds {not_finite.count} NaN or infinite values of {flat.size}, "
            f"the first at flat index {runs.element(not_finite.first)}; {AGAIN}, or ask its maker for a sound one"
        )
    if too_large.count:
        raise CheckpointError(
            f"{info.file}: tensor {info.name!r} holds {too_large.count} values of {flat.size} that are too large for "
            f"{out.dtype.name}, the first at flat index {runs.element(too_large.first)}; use {WIDER[out.dtype.name]}"
        )
    return flat.size * source.itemsize


@dataclass(frozen=True, kw_only=True)
class Runs:
    """A rectangular part of a tensor as runs of elements that lie together in the file, in the order of the part.

    shape: of the part.  starts: the flat index in the tensor of each run's first element.  length: elements of a run.
    """

    shape: tuple[int, ...]
    starts: np.ndarray
    length: int

    @classmethod
    def of(cls, info: TensorInfo, index: Index | None) -> "Runs":
        """The runs of the part of the tensor at `index`; None is all of it.

        Raises:
            ValueError: when `index` is not one slice of step 1 per axis, inside the tensor.
        """
        ranges = [range(size) for size in info.shape]
        if index is not None:
            if len(index) != len(info.shape):
                raise ValueError(f"tensor {info.name!r} has shape {info.shape}, the index has {len(index)} axes")
            ranges = [range(size)[part] for size, part in zip(info.shape, index, strict=True)]
        if any(one.step != 1 for one in ranges):
            raise ValueError(f"tensor {info.name!r}: slices must have step 1, got {index}")
        # Axes from `split` on are read whole, but for `split` itself: there lies one run.
        partial = [axis for axis, size in enumerate(info.shape) if len(ranges[axis]) != size]
        split = partial[-1] if partial else 0
        starts = np.zeros((1,), np.int64)
        for axis, one in enumerate(ranges):
            stride = math.prod(info.shape[axis + 1 :])
            inner = np.array(one if axis < split else one[:1], np.int64) * stride
            starts = (starts[:, None] + inner[None, :]).reshape(-1)
        return cls(
            shape=tuple(len(one) for one in ranges), starts=starts, length=math.prod(len(one) for one in ranges[split:])
        )

    def element(self, place: int) -> int:
        """The flat index in the tensor of the element that is number `place` of the part."""
        return int(self.starts[place // self.length]) + place % self.length

    def pieces(self, begin: int, count: int) -> Iterator[tuple[int, int]]:
        """Elements `begin` to `begin + count` of the part, as (flat index in the tensor, how many) in order."""
        while count:
            piece = min(count, self.length - begin % self.length)
            yield self.element(begin), piece
            begin, count = begin + piece, count - piece


def all_finite(values: np.ndarray) -> bool:
    """Whether a float array holds neither NaN nor infinity, read from its bits.

    Infinity and every NaN have all exponent bits set, so their bits are the largest of their sign: as signed integers
    they are at least +infinity's, or as unsigned ones at least -infinity's. Two integer maxima need no temporary memory
    and run at memory speed, where `np.isfinite` of bfloat16 is 20 times slower.
    """
    bits = f"{values.dtype.itemsize}"
    signed, unsigned = values.view(f"i{bits}"), values.view(f"u{bits}")
    infinity = np.array([np.inf, -np.inf], values.dtype)
    return bool(
        signed.max(initial=0) < infinity.view(signed.dtype)[0]
        and unsigned.max(initial=0) < infinity.view(unsigned.dtype)[1]
    )


@dataclass
class Found:
    """How many elements of a tensor were found to be something, and the flat index of the first."""

    count: int = 0
    first: int = -1

    def add(self, begin: int, where: np.ndarray) -> None:
        """Adds the true elements of `where`, whose first element is number `begin` of the tensor."""
        if count := int(np.count_nonzero(where)):
            self.first = self.first if self.count else begin + int(where.argmax())
            self.count += count


def _fill_chunk(stream: io.FileIO, chunk: np.ndarray, info: TensorInfo, runs: Runs, begin: int) -> None:
    """Fills `chunk` with the elements from number `begin` of the part on."""
    raw, done = chunk.view(np.uint8), 0
    for element, count in runs.pieces(begin, chunk.size):
        offset = element * chunk.itemsize
        stream.seek(info.start + offset)
        wanted = count * chunk.itemsize
        if (got := fill(stream, raw[done : done + wanted])) < wanted:
            raise CheckpointError(
                f"{info.file} was truncated after it was opened: tensor {info.name!r} has {info.nbytes} bytes, "
                f"got {offset + got}; {AGAIN}"
            )
        done += wanted


def _check_target(info: TensorInfo, out: np.ndarray, shape: tuple[int, ...]) -> None:
    if out.shape != shape:
        raise ValueError(f"tensor {info.name!r} has shape {shape}, the array to fill has {out.shape}")
    if out.dtype not in FLOAT_DTYPES.values():
        names = ", ".join(dtype.name for dtype in FLOAT_DTYPES.values())
        raise ValueError(f"tensor {info.name!r} cannot be read as {out.dtype}; expected one of {names}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"the array to fill with tensor {info.name!r} must be writable and C-contiguous")
