"""What is to be converted, item by item. An item is converted as a whole: it is what one step holds in memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convert.dtypes import FLOAT_DTYPES
from convert.mapping import FIELD, translate


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where arrays stand in a folder of Orbax checkpoints: array `key` of the checkpoint called `item`.

    `path`, `item` and `key` are patterns as those of `Rule`. split_axis: the axis that a mesh divides, so that chunks
    divide it too and a device reads only its part.
    """

    path: str
    item: str
    key: str
    split_axis: int = 0

    def __post_init__(self) -> None:
        if set(FIELD.findall(self.path)) != set(FIELD.findall(self.item + self.key)):
            raise ValueError(f"{self.path!r} and {self.item!r}, {self.key!r} must have the same fields in braces")


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of one array: see `Slot`."""

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


def places(slots: Sequence[Slot], paths: Sequence[str]) -> Mapping[str, Place]:
    """Every path's place.

    Raises:
        ValueError: when the table is at fault: a path has no slot, or two paths have the same.
    """
    found = {path: _place(slots, path) for path in paths}
    if len({(place.item, place.key) for place in found.values()}) < len(found):
        raise ValueError("two paths have the same item and key")
    return found


def _place(slots: Sequence[Slot], path: str) -> Place:
    for slot in slots:
        item, key = translate(path, slot.path, slot.item), translate(path, slot.path, slot.key)
        if item is not None and key is not None:
            return Place(item=item, key=key, split_axis=slot.split_axis)
    raise ValueError(f"no slot has the path {path!r}")
