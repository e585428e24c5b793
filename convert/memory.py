"""Memory of this process: how much it held at most, and how many items may be in flight at a time."""

import resource
import sys
import threading
from pathlib import Path

_STATUS = Path("/proc/self/status")
_COUNTED = ("RssAnon:", "RssShmem:")
_INTERVAL_SECONDS = 0.01

# Two items in flight and what the libraries hold of them meanwhile: below three times the largest item. The promise
# adds 600 MB for Python and its libraries.
_IN_FLIGHT_ITEMS, _IN_FLIGHT_BYTES = 2, 64_000_000


def items_in_flight(largest_item_bytes: int, workers: int) -> int:
    """How many items may be in memory at a time: two of the largest, and more where they are small."""
    return min(workers, max(_IN_FLIGHT_ITEMS, _IN_FLIGHT_BYTES // max(1, largest_item_bytes)))


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
