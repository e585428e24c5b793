"""Memory of this process: how much it held at most, and how many items may be in flight at a time."""

import resource
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from moejax._convert.items import ArrayPlan, Item

_STATUS = Path("/proc/self/status")
_COUNTED = ("RssAnon:", "RssShmem:")
_INTERVAL_SECONDS = 0.01
_ALIGNMENT = 64

# Two items in flight and what the libraries hold of them meanwhile: below three times the largest item. The promise
# adds 600 MB for Python and its libraries.
_IN_FLIGHT_ITEMS, _IN_FLIGHT_BYTES = 2, 64_000_000


def items_in_flight(largest_item_bytes: int, workers: int) -> int:
    """How many items may be in memory at a time: two of the largest, and more where they are small."""
    return min(workers, max(_IN_FLIGHT_ITEMS, _IN_FLIGHT_BYTES // max(1, largest_item_bytes)))


class WorkerMemory(threading.local):
    """Memory for the arrays of one item at a time, for each thread its own, used again for the next item.

    Taking new memory from the system for every item took a quarter of the processor's time.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._bytes = np.empty(max((_room(item.arrays) for item in items), default=0), np.uint8)

    def arrays(self, item: Item) -> Iterator[tuple[ArrayPlan, np.ndarray]]:
        """Each array of an item, with its memory, of which the content is left from others."""
        for number, array in enumerate(item.arrays):
            start = _room(item.arrays[:number])
            yield array, self._bytes[start : start + array.nbytes].view(array.numpy_dtype).reshape(array.shape)


def _room(arrays: Sequence[ArrayPlan]) -> int:
    """The bytes of arrays that lie one after the other, each aligned for any dtype."""
    return sum(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)


class PeakMemory:
    """The most memory that this process held while the block ran: `with PeakMemory() as peak: ...; peak.bytes`.

    On Linux anonymous and shared pages, looked at every 10 ms: pages of mapped and cached files do not count, since the
    kernel takes them back when it needs them. Elsewhere the largest resident size since the process began.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sampler.join()
        self.bytes = max(self.bytes, held_bytes())

    def _sample(self) -> None:
        while not self._ended.wait(_INTERVAL_SECONDS):
            self.bytes = max(self.bytes, held_bytes())


def held_bytes() -> int:
    """Bytes that this process holds now (on Linux), or the most it ever held."""
    if not _STATUS.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes
    lines = _STATUS.read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_COUNTED))
