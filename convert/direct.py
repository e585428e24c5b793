"""Writing past the system's cache: from the memory of the process straight to the disk (O_DIRECT).

Weights that were just converted are not read again soon. Through the cache, each byte is copied once more, into pages
that the system has to find and clear first, and everything else is pushed out of them.
"""

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# Addresses, offsets and lengths have to be multiples of the disk's block; whole pages, so that what goes through the
# cache beside it never shares a page with it.
ALIGNMENT = max(4096, mmap.PAGESIZE)
_BLOCK_BYTES = 8 << 20  # one large write is slower, since the system begins to store only what it has been handed
_O_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux has it
_REFUSED = {errno.EINVAL, errno.ENOTSUP}  # what file systems without it answer, when opening or when writing


def aligned_empty(nbytes: int) -> np.ndarray:
    """A uint8 array of `nbytes` that begins at a multiple of `ALIGNMENT`."""
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes]


def aligned(nbytes: int) -> int:
    """`nbytes`, rounded up to a multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Writer:
    """A file that is written at any place, by one thread. What can pass by the cache does so; see `writer`."""

    def __init__(self, path: Path, flags: int) -> None:
        self.descriptor = os.open(path, flags, 0o644)
        self._direct = _open_direct(path)

    def close(self) -> None:
        os.close(self.descriptor)
        if self._direct is not None:
            os.close(self._direct)

    def write(self, memory: np.ndarray, offset: int) -> None:
        """Puts the bytes of a C-contiguous array at `offset`. Quick where both begin at multiples of `ALIGNMENT`."""
        raw = memory.reshape(-1).view(np.uint8)
        head, body = min(-offset % ALIGNMENT, raw.size), 0
        if self._direct is not None and (raw.ctypes.data - offset) % ALIGNMENT == 0:
            body = self._write_direct(raw[head:], offset + head)
        if body:
            _write_all(self.descriptor, raw[:head], offset)
            _write_all(self.descriptor, raw[head + body :], offset + head + body)
        else:
            _write_all(self.descriptor, raw, offset)

    def _write_direct(self, raw: np.ndarray, offset: int) -> int:
        """Writes the whole pages of `raw`, if this file system can; returns how many bytes."""
        assert self._direct is not None
        body = raw.size // ALIGNMENT * ALIGNMENT
        try:
            _write_all(self._direct, raw[:body], offset)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            os.close(self._direct)
            self._direct = None
            return 0
        return body


@contextmanager
def writer(path: Path, *, new: bool) -> Iterator[Writer]:
    """A `Writer` for `path`; new: it must not exist yet. The caller syncs: a crash before may lose what was written."""
    file = Writer(path, os.O_WRONLY | (os.O_CREAT | os.O_EXCL if new else 0))
    try:
        yield file
    finally:
        file.close()


def _open_direct(path: Path) -> int | None:
    if not _O_DIRECT:
        return None
    try:
        return os.open(path, os.O_WRONLY | _O_DIRECT)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return None


def _write_all(descriptor: int, raw: np.ndarray, offset: int) -> None:
    done = 0
    while done < raw.size:
        done += os.pwrite(descriptor, raw.data[done : done + _BLOCK_BYTES], offset + done)
