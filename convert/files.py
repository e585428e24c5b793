"""Reading files of unknown origin: opening, filling memory, JSON."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from convert.errors import CheckpointError

AGAIN = "download it again"
# The largest header that the reference implementation of safetensors reads; no honest index is larger either.
JSON_LIMIT = 100_000_000
# Where a clone without git-lfs leaves a file of about 130 bytes in place of each large one.
LFS_POINTER = b"version https://git-lfs"


def regular(file: Path) -> Path:
    """`file`, when it is a file or a link to one: the HF cache links its files to blobs outside of the folder.

    Raises:
        CheckpointError: when it is anything else.
    """
    if os.path.isfile(file):  # Path.is_file raises when a link leads into a folder that is closed to us
        return file
    if file.is_symlink():
        raise CheckpointError(f"{file} is a link to {file.readlink()}, where there is no file to read; {AGAIN}")
    raise CheckpointError(f"{file} is no regular file; remove it and {AGAIN}")


def is_there(file: Path) -> bool:
    """Whether there is such a file, for one that a folder may do without.

    Raises:
        CheckpointError: when something of its name is there that cannot be read, such as a link that leads nowhere.
    """
    return os.path.lexists(file) and bool(regular(file))


@contextmanager
def opened(file: Path) -> Iterator[io.FileIO]:
    """`file`, unbuffered, for reading; what the system refuses while it is open becomes a CheckpointError."""
    try:
        with file.open("rb", buffering=0) as stream:
            yield stream
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}; check the disk and the path") from error


def fill(stream: io.FileIO, memory: np.ndarray) -> int:
    """Reads from `stream` until the uint8 array `memory` is full or the file ends; returns the bytes read."""
    done = 0
    # One read may return less than asked for: Linux stops at 2 GB, network file systems anywhere.
    while done < memory.size and (count := stream.readinto(memory.data[done:])):
        done += count
    return done


def read_start(file: Path, stream: io.FileIO, size: int) -> bytes:
    """The first `size` bytes of `file` (fewer when it is shorter), unless they show a git-lfs pointer.

    Raises:
        CheckpointError: for a git-lfs pointer.
    """
    memory = np.empty(size, np.uint8)
    start = memory[: fill(stream, memory)].tobytes()
    if start.startswith(LFS_POINTER):
        raise CheckpointError(f"{file} is a git-lfs pointer, not the file itself; run `git lfs pull` in {file.parent}")
    return start


def parse_object(what: str, raw: bytes) -> dict[str, object]:
    """The JSON object in `raw`, stricter than `json.loads`: UTF-8 only, and no key twice.

    Raises:
        CheckpointError: for anything else; `what` names the place.
    """
    try:
        # Decoded here, because json.loads would guess UTF-16 or UTF-32 from bytes.
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_int=_plain_int)
        # "\ud800" is valid JSON for a string that no file and no terminal can hold.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"{what} is not valid JSON ({reason}); {AGAIN}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is a JSON {type(value).__name__}, expected an object; {AGAIN}")
    return value


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Two readers of an object with a key twice may each take another value, so neither is right."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice!r} appears twice")
    return fields


def _plain_int(digits: str) -> int:
    """An integer as the reference implementation reads it: it takes -0 for a fraction."""
    if digits == "-0":
        raise ValueError("-0 is no integer")
    return int(digits)
