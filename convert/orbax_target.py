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


@dataclass(frozen=True, kw_only=True)
class OrbaxTarget:
    """See `Target`. places: of every array, by its name in the target."""

    folder: Path
    places: Mapping[str, Place]
    format: Format = "orbax"
    # Orbax copies what it saves, and is parallel in itself: so one at a time.
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
        from convert.orbax_items import write_orbax  # here, because it imports Orbax

        path = self._unfinished / item.name
        by_key = {self.places[name].key: values for name, values in arrays.items()}
        split_axes = {self.places[name].key: self.places[name].split_axis for name in arrays}
        with self._saving:
            write_orbax(path, by_key, split_axes)
        sync_tree(path)
        remove(self.folder / WEIGHTS / item.name)  # it is there where it was found damaged
        move(path, self.folder / WEIGHTS / item.name)

    def read_into(self, array: ArrayPlan, out: np.ndarray) -> None:
        from convert.orbax_items import read_array

        item, key = self.place(array)
        read_array(self.folder / WEIGHTS / item, key, out)

    def publish(self) -> None:
        remove(self._unfinished)

    def place(self, array: ArrayPlan) -> tuple[str, str]:
        place = self.places[array.target]
        return place.item, place.key

    @property
    def _unfinished(self) -> Path:
        return self.folder / WORK / "items"
