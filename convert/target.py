"""What a conversion writes to.

Whatever `write` has returned for is on the disk, and stays when the process is killed.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from convert.items import ArrayPlan, Item
from convert.manifest import Format


class Target(Protocol):
    """The weights of a folder that is being converted into."""

    @property
    def format(self) -> Format: ...

    @property
    def folder(self) -> Path: ...

    def clear(self) -> None:
        """Removes weights that are in the folder from before."""
        ...

    def prepare(self, done: Collection[str]) -> None:
        """Removes what a killed conversion left half-written: all but the items in `done`."""
        ...

    def write(self, item: Item, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the arrays of an item, by their names in the target. Several threads may do so at a time."""
        ...

    def read_into(self, array: ArrayPlan, out: np.ndarray) -> None:
        """Reads back what was written for one array.

        Raises:
            CheckpointError: when it is missing or damaged.
        """
        ...

    def publish(self) -> None:
        """Gives everything its final name. May be called again after it was interrupted."""
        ...

    def place(self, array: ArrayPlan) -> tuple[str, str]:
        """Where the manifest says that an array is: item and key."""
        ...
