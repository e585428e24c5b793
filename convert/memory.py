"""Memory of this process: how much it held at most, and how much work may be in flight at a time."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_STATUS = Path("/proc/self/status")
_COUNTED = ("RssAnon:", "RssShmem:")
_INTERVAL_SECONDS = 0.01

# Two items in flight, and the copy that is made of the one that is written: three times the largest item. The promise
# adds 600 MB for Python and its libraries.
_IN_FLIGHT_ITEMS, _IN_FLIGHT_BYTES = 2, 64_000_000


class Buffers:
    """Memory for the items in flight: as many as fit at a time, and always at least one.

    A buffer is used again by the next item: taking new memory from the system costs as much time as filling it.
    """

    def __init__(self, largest_item_bytes: int) -> None:
        self._limit = max(_IN_FLIGHT_ITEMS * largest_item_bytes, _IN_FLIGHT_BYTES)
        self._taken_bytes = 0
        self._free: list[np.ndarray] = []
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, nbytes: int) -> Iterator[np.ndarray]:
        """Waits until `nbytes` more may be in flight; yields a uint8 array of that size for the time of the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken_bytes or self._taken_bytes + nbytes <= self._limit)
            buffer = self._take(nbytes)
            self._taken_bytes += buffer.size
        try:
            yield buffer[:nbytes]
        finally:
            with self._changed:
                self._taken_bytes -= buffer.size
                self._free.append(buffer)
                self._changed.notify_all()

    def _take(self, nbytes: int) -> np.ndarray:
        """The smallest free buffer that is large enough, unless it would keep others out; or a new one."""
        self._free.sort(key=lambda buffer: buffer.size)
        for position, buffer in enumerate(self._free):
            if buffer.size >= nbytes and self._taken_bytes + buffer.size <= self._limit:
                return self._free.pop(position)
        while self._free and self._taken_bytes + sum(buffer.size for buffer in self._free) + nbytes > self._limit:
            self._free.pop(0)
        return np.empty(nbytes, np.uint8)


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
