"""What is to be converted, item by item. An item is converted as a whole: it is what one step holds in memory."""

import math
from dataclasses import dataclass

import numpy as np

from moejax._convert.dtypes import FLOAT_DTYPES


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an array stands in a folder of Orbax checkpoints: array `key` of the checkpoint called `item`.

    split_axis: the axis that a mesh divides, so that chunks divide it too and a device reads only its part.
    """

    item: str
    key: str
    split_axis: int


@dataclass(frozen=True, kw_only=True)
class ArrayPlan:
    """One array: its name in the `source`, its name in the `target`, and its shape and `dtype` there (BF16, ...)."""

    source: str
    target: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def numpy_dtype(self) -> np.dtype:
        return FLOAT_DTYPES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Item:
    """Arrays that are read, held in memory and written together. files: those of the source that hold them."""

    name: str
    arrays: tuple[ArrayPlan, ...]
    files: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)
