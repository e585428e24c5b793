"""Writing past the cache: the same bytes as any other way, wherever they begin and whatever the disk can do."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from convert import direct
from convert.direct import ALIGNMENT, aligned, aligned_empty, writer

SIZES = (0, 1, ALIGNMENT - 1, ALIGNMENT, 3 * ALIGNMENT + 5)


def content(path: Path, shift: int) -> bytes:
    """A file of arrays of all sizes, each written where it belongs from memory that begins `shift` after a page."""
    rng = np.random.default_rng(0)
    expected, offset = b"", 0
    with writer(path, new=True) as file:
        for size in SIZES:
            for inset in (0, 7):  # at a page, and where no page begins
                place = aligned(offset) + inset
                memory = aligned_empty(size + shift)[shift:]
                memory[:] = rng.integers(0, 256, size, np.uint8)
                file.write(memory, place)
                expected = expected.ljust(place, b"\0") + memory.tobytes()
                offset = place + size
    return expected


@pytest.mark.parametrize("shift", [0, 7, 16])
def test_every_byte_arrives(tmp_path: Path, shift: int) -> None:
    expected = content(tmp_path / "file", shift)
    assert (tmp_path / "file").read_bytes() == expected


def test_whole_pages_pass_by_the_cache_where_the_disk_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[int] = []
    pwrite = os.pwrite

    def seen(descriptor: int, data: memoryview, offset: int) -> int:
        import fcntl

        flags.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", seen)
    with writer(tmp_path / "file", new=True) as file:
        file.write(aligned_empty(2 * ALIGNMENT + 1), 0)
    assert flags == [os.O_DIRECT, 0], "the pages, then what remains"


@pytest.mark.parametrize("when", ["open", "pwrite"])
def test_a_disk_that_refuses_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    call = getattr(os, when)

    def refuse(target: int | Path, *args: int) -> int:
        import fcntl

        wanted = args[0] if when == "open" else fcntl.fcntl(int(str(target)), fcntl.F_GETFL)
        if isinstance(wanted, int) and wanted & os.O_DIRECT:
            raise OSError(errno.EINVAL, "this file system has no O_DIRECT")
        return call(target, *args)

    monkeypatch.setattr(direct.os, when, refuse)
    expected = content(tmp_path / "file", 0)
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == expected


def test_what_else_the_disk_says_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with writer(tmp_path / "file", new=True) as file:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            file.write(aligned_empty(ALIGNMENT), 0)
    with pytest.raises(FileExistsError), writer(tmp_path / "file", new=True):
        pass
