"""Writes a folder of Orbax checkpoints, one for each item.

Orbax's save is atomic and cannot go on where it stopped, so an item is saved under a name in the work folder, and
renamed into `weights/` when all of it is on the disk.
"""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convert.durable import move, remove, sync_tree
from convert.items import ArrayPlan, Item, Place
from convert.journal import WORK
from convert.manifest import Format
from convert.orbax_folder import WEIGHTS
from convert.tensor_info import TensorInfo, ranges_of
from convert.zarr_array import read_array, write_array


@dataclass(frozen=True, kw_only=True)
class OrbaxTarget:
    """See `Target`. places: of every array, by its name in the target."""

    folder: Path
    places: Mapping[str, Place]
    format: Format = "orbax"
    # Orbax logs through a logger that all threads share: so one at a time.
    _saving: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def clear(self) -> None:
        remove(self.folder / WEIGHTS)

    def prepare(self, done: Collection[str]) -> None:
        remove(self._unfinished)
        self._unfinished.mkdir()
        weights = self.folder / WEIGHTS
        weights.mkdir(exist_ok=True)
        for path in weights.iterdir():
            if path.name not in done:
                remove(path)

    def write(self, item: Item, arrays: Mapping[str, np.ndarray]) -> None:
        from convert.orbax_items import describe_item  # here, because it imports Orbax, and with it JAX

        path = self._unfinished / item.name
        with self._saving:
            describe_item(path, {self.places[name].key: values.dtype for name, values in arrays.items()})
        for name, values in arrays.items():
            write_array(path / self.places[name].key, values, self.places[name].split_axis)
        sync_tree(path)
        remove(self.folder / WEIGHTS / item.name)  # it is there where it was found damaged
        move(path, self.folder / WEIGHTS / item.name)

    def read_into(self, array: ArrayPlan, out: np.ndarray) -> None:
        item, key = self.place(array)
        path = self.folder / WEIGHTS / item
        info = TensorInfo(name=array.target, shape=array.shape, dtype=array.dtype, file=path, stored_name=key)
        read_array(path / key, info, ranges_of(info, None), out)

    def publish(self) -> None:
        remove(self._unfinished)

    def place(self, array: ArrayPlan) -> tuple[str, str]:
        place = self.places[array.target]
        return place.item, place.key

    @property
    def _unfinished(self) -> Path:
        return self.folder / WORK / "items"
