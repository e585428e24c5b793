"""What a conversion writes to.

Whatever `write` has returned for is on the disk, and stays when the process is killed.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from moejax._convert.items import ArrayPlan, Item
from moejax._convert.manifest import Format


class Target(Protocol):
    """The weights of a folder that is being converted into."""

    @property
    def format(self) -> Format: ...

    @property
    def folder(self) -> Path: ...

    def prepare(self, done: Collection[str]) -> None:
        """Makes what has to be there before items are written, and removes or mends what a killed conversion left
        half-written: all but the items in `done`."""
        ...

    def write(self, item: Item, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the arrays of an item, by their names in the target. Several threads may do so at a time."""
        ...

    def read_back(self, item: Item, memory: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The arrays of an item in their order, as whoever has only the format's own library reads them.

        memory: for each array, which may be used for it.

        Raises:
            CheckpointError: when one is missing, damaged, or described as another than it is.
        """
        ...

    def check_listing(self) -> None:
        """Reads what lists and describes the weights of the whole folder; `publish` has been called.

        Raises:
            CheckpointError: when it is missing, damaged, or says something else.
        """
        ...

    def publish(self) -> None:
        """Gives everything its final name. May be called again after it was interrupted."""
        ...

    def place(self, array: ArrayPlan) -> tuple[str, str]:
        """Where the manifest says that an array is: item and key."""
        ...
