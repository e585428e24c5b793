"""The dtypes of safetensors files, and which of them are weights that can be read."""

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np

# Bits per element, by the name in the file.
ITEM_BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"BOOL": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64},
    **{"F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
}

# Files are little-endian. Whatever is not here is an index, a mask or quantised, where a plain cast would give numbers
# that mean something else.
FLOAT_DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_MOST_AXES = 64
_MOST_ELEMENTS = 2**63 // 8 - 1  # strides fit a signed 64-bit number of bytes, of 8 per element at most


def fits_numpy(shape: Sequence[int]) -> bool:
    """Whether numpy can describe an array of this shape, in any dtype."""
    return len(shape) <= _MOST_AXES and math.prod(size or 1 for size in shape) <= _MOST_ELEMENTS
