"""Writes a folder of Orbax checkpoints, one for each item.

Orbax's save is atomic and cannot go on where it stopped, so an item is saved under a name in the work folder, and
renamed into `weights/` when all of it is on the disk.
"""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convert.checksums import Sums
from convert.chunks import chunk_shape, read_chunks, write_chunks
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

    def write(self, item: Item, arrays: Mapping[str, np.ndarray]) -> Mapping[str, Sums]:
        from convert.orbax_items import describe_item  # here, because it imports Orbax

        path = self._unfinished / item.name
        by_key = {self.places[name].key: values for name, values in arrays.items()}
        chunks = {
            place.key: chunk_shape(values.shape, values.itemsize, place.split_axis)
            for name, values in arrays.items()
            if (place := self.places[name])
        }
        with self._saving:
            describe_item(path, by_key, chunks)
        sums = {key: write_chunks(path / key, values, chunks[key]) for key, values in by_key.items()}
        sync_tree(path)
        remove(self.folder / WEIGHTS / item.name)  # it is there where it was found damaged
        move(path, self.folder / WEIGHTS / item.name)
        return {name: sums[self.places[name].key] for name in arrays}

    def read_into(self, array: ArrayPlan, out: np.ndarray) -> None:
        item, key = self.place(array)
        index = tuple(slice(0, size) for size in array.shape)
        read_chunks(self.folder / WEIGHTS / item / key, array.shape, array.dtype, out, index, None)

    def publish(self) -> None:
        remove(self._unfinished)

    def place(self, array: ArrayPlan) -> tuple[str, str]:
        place = self.places[array.target]
        return place.item, place.key

    @property
    def _unfinished(self) -> Path:
        return self.folder / WORK / "items"
