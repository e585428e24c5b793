"""Writing so that what is there survives a crash: data first, then its name."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moejax._convert.errors import CheckpointError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_SPACE = ("No space left on device", "Disk quota exceeded")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what the system refuses while something is written into `folder` into a CheckpointError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise CheckpointError(full(folder)) from error
        where = error.filename or folder
        raise CheckpointError(
            f"cannot write {where}: {error.strerror or error}; check the folder and the disk"
        ) from error


def full(folder: Path) -> str:
    """The message for a disk that has no space left."""
    return f"{folder}: the disk is full; make room and run the same command again, it continues where it stopped"


def is_full(message: str) -> bool:
    """Whether a library's message, of which the number of the error is lost, says that the disk is full."""
    return any(text in message for text in _NO_SPACE)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` for everything in `folder`, and for itself."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def write_atomically(path: Path, raw: bytes, *, scratch: Path) -> None:
    """Puts a file with these bytes at `path`, all of it or nothing. `scratch`: a folder on the same file system."""
    partial = scratch / f"{path.name}.partial"
    with partial.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    move(partial, path)


def move(path: Path, target: Path) -> None:
    """Renames within a file system and waits until the new name is on the disk."""
    os.replace(path, target)
    sync(target.parent)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
