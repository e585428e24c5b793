"""Writes a folder of Orbax checkpoints, one for each item.

Orbax's save is atomic and cannot go on where it stopped, so an item is saved under a name in the work folder, and
renamed into `weights/` when all of it is on the disk.
"""

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moejax._convert.durable import move, remove, sync_tree
from moejax._convert.errors import CheckpointError, listed
from moejax._convert.items import ArrayPlan, Item, Place
from moejax._convert.journal import WORK
from moejax._convert.manifest import Format
from moejax._convert.previous import ITEMS, WEIGHTS, previous_weights
from moejax._convert.tensor_info import TensorInfo
from moejax._convert.zarr_array import check_array, write_array


@dataclass(frozen=True, kw_only=True)
class OrbaxTarget:
    """See `Target`. places: of every array, by its name in the target."""

    folder: Path
    places: Mapping[str, Place]
    format: Format = "orbax"
    # Orbax logs through a logger that all threads share: so one at a time.
    _saving: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def prepare(self, done: Collection[str]) -> None:
        remove(self._unfinished)
        self._unfinished.mkdir()
        (self.folder / WEIGHTS).mkdir(exist_ok=True)
        for path in previous_weights(self.folder, ["orbax"]):
            if path.parent.name == WEIGHTS and path.name not in done:
                remove(path)

    def write(self, item: Item, arrays: Mapping[str, np.ndarray]) -> None:
        from moejax._convert.orbax_items import describe_item  # here, because it imports Orbax, and with it JAX

        path = self._unfinished / item.name
        with self._saving:
            describe_item(path, {self.places[name].key: values.dtype for name, values in arrays.items()})
        for name, values in arrays.items():
            write_array(path / self.places[name].key, values, self.places[name].split_axis)
        sync_tree(path)
        remove(self.folder / WEIGHTS / item.name)  # it is there where it was found damaged
        move(path, self.folder / WEIGHTS / item.name)

    def read_back(self, item: Item, memory: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        from moejax._convert.orbax_items import restore_item  # as above

        path = self.folder / WEIGHTS / item.name
        for array in item.arrays:  # what the loader would find, Orbax tells with tracebacks of its threads beside
            _, key = self.place(array)
            info = TensorInfo(name=array.target, shape=array.shape, dtype=array.dtype, file=path, stored_name=key)
            check_array(path / key, info)
        with self._saving:  # also because it takes memory of its own
            found = restore_item(path)
        expected = {self.place(array)[1]: array for array in item.arrays}
        if found.keys() != expected.keys():
            raise CheckpointError(f"{path} holds {listed(sorted(found))}, expected {listed(sorted(expected))}")
        for key, array in expected.items():
            values = found[key]
            if values.shape != array.shape or values.dtype != array.numpy_dtype:
                raise CheckpointError(
                    f"{path / key} has shape {list(values.shape)} and dtype {values.dtype}, expected "
                    f"{list(array.shape)} and {array.numpy_dtype}"
                )
            yield values

    def check_listing(self) -> None:
        """Each item describes itself, and was read so."""

    def publish(self) -> None:
        remove(self._unfinished)

    def place(self, array: ArrayPlan) -> tuple[str, str]:
        place = self.places[array.target]
        return place.item, place.key

    @property
    def _unfinished(self) -> Path:
        return self.folder / WORK / ITEMS
