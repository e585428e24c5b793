"""Whether a tensor is what it is taken for: another one of the same folder, or numbers that are known."""

import numpy as np

from moejax._convert.dtypes import FLOAT_DTYPES
from moejax._convert.reading import BLOCK_BYTES, blocks
from moejax._convert.source import TensorSource
from moejax._convert.tensor_info import float_dtype, ranges_of

_BLOCK_BYTES = 8 * BLOCK_BYTES  # of a converted folder whole chunks are read, so not a few rows of one at a time
# How far a number may be from the one that it was rounded from, and from one that another program computed in float32.
_ROUNDING = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-19, "F64": 2.0**-19}


def same_numbers(source: TensorSource, first: str, second: str) -> bool:
    """Whether two tensors have the same shape and numbers, whatever their dtypes; NaN is the same as NaN.

    Raises:
        CheckpointError: when one of them cannot be read.
    """
    infos = source.tensors[first], source.tensors[second]
    if infos[0].shape != infos[1].shape:
        return False
    dtype = np.promote_types(*(np.float64 if float_dtype(info).itemsize > 4 else np.float32 for info in infos))
    for index in blocks(ranges_of(infos[0], None), _BLOCK_BYTES // dtype.itemsize) if infos[0].nbytes else ():
        found = []
        for info in infos:
            shape = tuple(part.stop - part.start for part in index)
            found.append(np.empty(shape, dtype))
            source.read_into(info.name, found[-1], index, allow_nan=True)
        if not np.array_equal(*found, equal_nan=True):
            return False
    return True


def holds(source: TensorSource, name: str, expected: np.ndarray | None) -> bool:
    """Whether a tensor holds these numbers, as far as its dtype can; None is of no tensor.

    Raises:
        CheckpointError: when it cannot be read.
    """
    info = source.tensors[name]
    if expected is None or expected.shape != info.shape or info.dtype not in FLOAT_DTYPES:
        return False
    found = np.empty(info.shape, np.float64)
    source.read_into(name, found, allow_nan=True)
    rounding = _ROUNDING[info.dtype]
    # Angles of far positions are large, so the sines of another program differ there by more than rounding.
    return bool(np.allclose(found, expected, rtol=2 * rounding, atol=max(rounding, 1e-3) if expected.ndim > 1 else 0))
