"""Values on their way from a file into memory of the caller: rounded to its dtype, checked, in bounded steps."""

import math
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from moejax._convert.dtypes import FLOAT_DTYPES
from moejax._convert.errors import CheckpointError
from moejax._convert.tensor_info import Index, TensorInfo, index_of

BLOCK_BYTES = 4 << 20  # bounds the temporary memory of reading; still in the processor's cache when it is checked
_WIDER = {"float16": "bfloat16", "bfloat16": "float32", "float32": "float64"}


class ByteCounter:
    """Bytes read so far, by whichever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = 0

    def add(self, count: int) -> None:
        with self._lock:
            self.total += count


def blocks(ranges: Sequence[range], most: int) -> Iterator[Index]:
    """A part of a tensor in pieces of at most `most` elements (one row of the last axis, where that is longer, is cut
    too), in the order of its elements in memory."""
    if not ranges:
        yield ()
        return
    first, *rest = ranges
    inner = math.prod(len(one) for one in rest)
    if inner <= most:
        step = max(1, most // max(1, inner))
        for begin in range(first.start, first.stop, step):
            yield (slice(begin, min(begin + step, first.stop)), *index_of(rest))
    else:
        for row in first:
            yield from ((slice(row, row + 1), *piece) for piece in blocks(rest, most))


class CheckedCopy:
    """Fills `out` with the part of a tensor at `ranges`, piece by piece, in the order of its elements in memory.

    NaN, infinity and what does not fit the dtype of `out` are counted, and refused at the end: `finish`.

    Raises:
        ValueError: when `out` has another shape than the part, is not C-contiguous, not writable, or no float array.
    """

    def __init__(self, info: TensorInfo, ranges: Sequence[range], out: np.ndarray, *, allow_nan: bool) -> None:
        shape = tuple(len(one) for one in ranges)
        if out.shape != shape:
            raise ValueError(f"tensor {info.name!r} has shape {shape}, the array to fill has {out.shape}")
        if out.dtype not in FLOAT_DTYPES.values():
            names = ", ".join(dtype.name for dtype in FLOAT_DTYPES.values())
            raise ValueError(f"tensor {info.name!r} cannot be read as {out.dtype}; expected one of {names}")
        if not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(f"the array to fill with tensor {info.name!r} must be writable and C-contiguous")
        self._info, self._ranges, self._allow_nan = info, ranges, allow_nan
        self._out, self._done = out.reshape(-1), 0
        self._not_finite, self._too_large = _Found(), _Found()

    def add(self, values: np.ndarray) -> None:
        """The next values, in the dtype of the tensor; they may be the memory of `out` itself."""
        values = values.reshape(-1)
        target = self._out[self._done : self._done + values.size]
        # No warnings: what does not fit becomes infinite, and is found; numpy warns of signalling NaNs as well.
        with np.errstate(all="ignore"):
            if not self._allow_nan and not all_finite(values):
                self._not_finite.add(self._done, ~np.isfinite(values))
            if target.dtype != values.dtype:
                np.copyto(target, values, casting="unsafe")
                if not all_finite(target):
                    self._too_large.add(self._done, np.isinf(target) & np.isfinite(values))
            elif not np.may_share_memory(target, values):
                np.copyto(target, values)
        self._done += values.size

    def finish(self, again: str) -> None:
        """Refuses what was found; `again`: what to do about a tensor that holds NaN.

        Raises:
            CheckpointError: for NaN and infinity, unless they are allowed, and for finite values too large for `out`.
        """
        assert self._done == self._out.size
        where = f"{self._info.file}: tensor {self._info.name!r} holds"
        if found := self._not_finite.count:
            raise CheckpointError(
                f"{where} {found} NaN or infinite values of {self._out.size}, the first at flat index "
                f"{self._place(self._not_finite.first)}; {again}"
            )
        if found := self._too_large.count:
            name = self._out.dtype.name
            raise CheckpointError(
                f"{where} {found} values of {self._out.size} that are too large for {name}, the first at flat index "
                f"{self._place(self._too_large.first)}; use {_WIDER[name]}"
            )

    def _place(self, number: int) -> int:
        """The flat index in the whole tensor of an element of the part."""
        if not self._ranges:
            return 0
        inside = np.unravel_index(number, tuple(len(one) for one in self._ranges))
        place = tuple(one.start + int(i) for one, i in zip(self._ranges, inside, strict=True))
        return int(np.ravel_multi_index(place, self._info.shape))


class _Found:
    """How many elements of a part were found to be something, and the number of the first."""

    def __init__(self) -> None:
        self.count, self.first = 0, -1

    def add(self, begin: int, where: np.ndarray) -> None:
        """Adds the true elements of `where`, whose first element is number `begin` of the part."""
        if count := int(np.count_nonzero(where)):
            self.first = self.first if self.count else begin + int(where.argmax())
            self.count += count


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
