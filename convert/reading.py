"""The bytes of one tensor, into memory that the caller owns: converted, checked, in bounded chunks."""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convert.dtypes import FLOAT_DTYPES
from convert.errors import CheckpointError
from convert.files import AGAIN, fill, opened
from convert.header import TensorInfo

# Bounds the temporary memory of a conversion; small enough that a chunk is still in the processor's cache when it is
# checked and converted.
CHUNK_BYTES = 1 << 20
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


def read(info: TensorInfo, dtype: npt.DTypeLike | None = None, *, allow_nan: bool = False) -> np.ndarray:
    """The tensor as a new array of `dtype` (None: the file's), with the errors of `read_into`."""
    source = source_dtype(info)
    out = np.empty(info.shape, source if dtype is None else dtype)
    read_into(info, out, allow_nan=allow_nan)
    return out


def read_into(info: TensorInfo, out: np.ndarray, *, allow_nan: bool = False) -> None:
    """Reads the tensor into `out` (any float dtype, the tensor's shape, C-contiguous), rounding to its dtype.

    Temporary memory: `CHUNK_BYTES`, and none when the dtypes are equal and all values finite.

    Raises:
        CheckpointError: when the file has changed, the dtype is none of bf16, f16, f32, f64, a value is NaN or infinite
            (unless `allow_nan`), or a finite value is too large for `out`. `out` then holds a part of the tensor.
        ValueError: when `out` has another shape, is not contiguous, not writable, or no float array.
    """
    source = source_dtype(info)
    _check_target(info, out)
    flat = out.reshape(-1)
    step = CHUNK_BYTES // source.itemsize
    scratch = None if out.dtype == source else np.empty(min(step, flat.size), source)
    not_finite, too_large = Found(), Found()
    # No warnings: what does not fit becomes infinite, and is found; numpy warns of signalling NaNs even in isfinite.
    with np.errstate(all="ignore"), opened(info.file) as stream:
        stream.seek(info.start)
        for begin in range(0, flat.size, step):
            target = flat[begin : begin + step]
            chunk = target if scratch is None else scratch[: target.size]
            _fill_chunk(stream, chunk, info, begin)
            if not allow_nan and not all_finite(chunk):
                not_finite.add(begin, ~np.isfinite(chunk))
            if scratch is not None:
                np.copyto(target, chunk, casting="unsafe")
                if not all_finite(target):
                    too_large.add(begin, np.isinf(target) & np.isfinite(chunk))
    if not_finite.count:
        raise CheckpointError(
            f"{info.file}: tensor {info.name!r} holds {not_finite.count} NaN or infinite values of {flat.size}, "
            f"the first at flat index {not_finite.first}; {AGAIN}, or ask its maker for a sound one"
        )
    if too_large.count:
        raise CheckpointError(
            f"{info.file}: tensor {info.name!r} holds {too_large.count} values of {flat.size} that are too large for "
            f"{out.dtype.name}, the first at flat index {too_large.first}; use {WIDER[out.dtype.name]}"
        )


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


def _fill_chunk(stream: io.FileIO, chunk: np.ndarray, info: TensorInfo, begin: int) -> None:
    if (got := fill(stream, chunk.view(np.uint8))) < chunk.nbytes:
        raise CheckpointError(
            f"{info.file} was truncated after it was opened: tensor {info.name!r} has {info.nbytes} bytes, "
            f"got {begin * chunk.itemsize + got}; {AGAIN}"
        )


def _check_target(info: TensorInfo, out: np.ndarray) -> None:
    if out.shape != info.shape:
        raise ValueError(f"tensor {info.name!r} has shape {info.shape}, the array to fill has {out.shape}")
    if out.dtype not in FLOAT_DTYPES.values():
        names = ", ".join(dtype.name for dtype in FLOAT_DTYPES.values())
        raise ValueError(f"tensor {info.name!r} cannot be read as {out.dtype}; expected one of {names}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"the array to fill with tensor {info.name!r} must be writable and C-contiguous")
