"""Memory of this process: how much it held at most, and how much work may be in flight at a time."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from convert.direct import aligned_empty

_STATUS = Path("/proc/self/status")
_COUNTED = ("RssAnon:", "RssShmem:")
_INTERVAL_SECONDS = 0.01

# Two items in flight, chunks of them, and what is a file's while it is hashed: well below three times the largest item.
# The promise adds 600 MB for Python and its libraries.
_IN_FLIGHT_ITEMS, _IN_FLIGHT_BYTES = 2, 64_000_000


class Buffers:
    """Memory for the items in flight: two of the largest, and more where they are small.

    All are of the largest item's size and used again by whichever item comes next: taking new memory from the system
    costs as much time as filling it.
    """

    def __init__(self, largest_item_bytes: int, workers: int) -> None:
        self._nbytes = max(1, largest_item_bytes)
        self._unused = min(workers, max(_IN_FLIGHT_ITEMS, _IN_FLIGHT_BYTES // self._nbytes))
        self._free: list[np.ndarray] = []
        self._changed = threading.Condition()

    @contextmanager
    def taken(self) -> Iterator[np.ndarray]:
        """Waits until another item may be in flight; yields a uint8 array for the time of the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._unused)
            if not self._free:
                self._unused -= 1
                self._free.append(aligned_empty(self._nbytes))
            buffer = self._free.pop()
        try:
            yield buffer
        finally:
            with self._changed:
                self._free.append(buffer)
                self._changed.notify()


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
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes
    lines = _STATUS.read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_COUNTED))
