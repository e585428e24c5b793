"""Arrays in pages of 2 MiB instead of 4 KiB, so that reading them costs few translations of addresses.

Linux gives such pages (transparent huge pages) to who asks for them before touching the memory. Where it does not, and
on other systems, the arrays are the same in plain memory.
"""

import ctypes
import errno
import mmap
import sys
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import DTypeLike

from moejax.runtime.memory_nodes import spread

if TYPE_CHECKING:
    import jax

HUGE_BYTES = 2**21
CHUNK_BYTES = 2**25  # that smaller arrays share
LINE_BYTES = 64  # an array that begins at a multiple of these is not copied by `jax.device_put` on a CPU

_COLLAPSE = 25  # MADV_COLLAPSE of <linux/mman.h>, which Python's mmap does not name
_COLLAPSE_TRIES = 5
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPPINGS = Path("/proc/self/smaps")


class HugePages:
    """Gives arrays that lie in huge pages where the system has them. Threads may share one.

    Small arrays share chunks, and a chunk lives as long as an array in it. What is not written to takes no memory.
    Several memory nodes each get their share of the pages.

    The memory is private to the process. A process that forks shares the pages with its child until one of them writes,
    and a page that is only read stays whole: weights need no MADV_DONTFORK, which would take them from the child.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunk = np.empty(0, np.uint8)
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Like `numpy.empty`. It begins at a multiple of 64 bytes, and of a small page if it is as large as one."""
        dtype = np.dtype(dtype)
        nbytes = prod(shape) * dtype.itemsize
        if nbytes > CHUNK_BYTES:
            return np.ndarray(shape, dtype, _advised(_round_up(nbytes, HUGE_BYTES)))
        with self._lock:
            start = _round_up(self._used, mmap.PAGESIZE if nbytes >= mmap.PAGESIZE else LINE_BYTES)
            if start + nbytes > self._chunk.size:
                self._chunk, start = _advised(CHUNK_BYTES), 0
            self._used = start + nbytes
            return np.ndarray(shape, dtype, self._chunk, start)


def copied(array: "jax.Array") -> "jax.Array":
    """The same numbers in huge pages, as weights lie; `array` itself where it is not in a CPU's memory."""
    import jax  # here, because the command line imports this file before it needs JAX

    if next(iter(array.devices())).platform != "cpu":
        return array
    held = HugePages().empty(array.shape, array.dtype)
    held[...] = np.asarray(array)
    return jax.device_put(held, array.sharding)


def collapse(array: "jax.Array") -> None:
    """Has Linux (from 6.1 on) move an array that XLA has made on a CPU into huge pages, as far as whole ones fit in it.

    It would do so whatever the system's setting is, so the setting is looked at. A page that is in use at that moment
    stays where it is, and the call says EAGAIN: it is asked again a few times.
    """
    if next(iter(array.devices())).platform != "cpu" or why_none() is not None:
        return
    advise = ctypes.CDLL(None, use_errno=True).madvise
    for start, end in _spans(array):
        first = _round_up(start, HUGE_BYTES)
        whole = (end - first) // HUGE_BYTES * HUGE_BYTES
        for _ in range(_COLLAPSE_TRIES if whole > 0 else 0):
            moved = advise(ctypes.c_void_p(first), ctypes.c_size_t(whole), _COLLAPSE) == 0
            if moved or ctypes.get_errno() != errno.EAGAIN:
                break


def in_huge_pages(arrays: "Iterable[np.ndarray | jax.Array]") -> tuple[int | None, int]:
    """Bytes of `arrays` in huge pages, None where that is not known (elsewhere than on Linux), and all their bytes.

    Memory counts once, whoever shares it; copies on several devices are memory of their own. Huge pages of a mapping
    that holds other things as well count as the arrays' as far as these overlap it.
    """
    spans = _merged(span for array in arrays for span in _spans(array))
    total = sum(end - start for start, end in spans)
    ends, huge = [end for _, end in spans], 0
    try:
        for start, end, huge_there in _mappings():
            overlap, first = 0, bisect_right(ends, start)
            while huge_there and first < len(spans) and spans[first][0] < end:
                overlap += min(end, spans[first][1]) - max(start, spans[first][0])
                first += 1
            huge += min(overlap, huge_there)
    except OSError:
        return None, total
    return huge, total


def setting() -> str | None:
    """To whom the system gives huge pages: "always" all, "madvise" who asks, "never" nobody; None where it has none."""
    try:
        words = _SETTING.read_text().split()
    except OSError:
        return None
    return next((word.strip("[]") for word in words if word.startswith("[")), None)


def why_none() -> str | None:
    """Why this process gets no huge pages, in a few words; None where it does, which is tried with one."""
    if sys.platform != "linux":
        return "not Linux"
    page = _advised(HUGE_BYTES)
    page[0] = 1
    if in_huge_pages([page])[0]:
        return None
    given = setting()
    if given is None:
        return "the kernel has none"
    return "transparent_hugepage/enabled is never" if given == "never" else "the system gave none"


def _advised(nbytes: int) -> np.ndarray:
    """So many bytes that begin at a huge page and were asked for in huge pages; or plain ones."""
    try:  # private: shared memory has a setting of its own, which is mostly off
        memory = mmap.mmap(-1, nbytes + HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # a limit on addresses, perhaps: those to spare are not needed for plain memory
        return _aligned(np.empty(nbytes + LINE_BYTES, np.uint8), nbytes, LINE_BYTES)
    whole = np.frombuffer(memory, np.uint8)
    spread(whole.ctypes.data, whole.size)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        try:
            memory.madvise(advice)
        except OSError:  # a kernel without them
            pass
    return _aligned(whole, nbytes, HUGE_BYTES)


def _aligned(memory: np.ndarray, nbytes: int, alignment: int) -> np.ndarray:
    skipped = -memory.ctypes.data % alignment
    return memory[skipped : skipped + nbytes]


def _round_up(nbytes: int, unit: int) -> int:
    return -(-nbytes // unit) * unit


def _spans(array: "np.ndarray | jax.Array") -> Iterator[tuple[int, int]]:
    """From where to where an array lies in this process's memory."""
    if isinstance(array, np.ndarray):
        yield byte_bounds(array)
        return
    for shard in array.addressable_shards:
        start = shard.data.unsafe_buffer_pointer()
        yield start, start + shard.data.nbytes


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """In order, without overlaps."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif start < end:
            merged.append((start, end))
    return merged


def _mappings() -> Iterator[tuple[int, int, int]]:
    """(start, end, bytes in huge pages) of each mapping of this process."""
    start = end = 0
    with _MAPPINGS.open() as lines:
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "AnonHugePages:":
                yield start, end, int(rest.split()[0]) * 1024
            elif not word.endswith(":"):
                start, end = (int(part, 16) for part in word.split("-"))
