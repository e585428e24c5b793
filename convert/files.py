"""Files of unknown origin: whether they are there, opening them, and JSON."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moejax._convert.errors import CheckpointError

AGAIN, RECONVERT = "download it again", "convert again with --restart"
# A damaged download seldom makes NaN of a whole tensor and nothing else.
NOT_FINITE = "its maker has to mend it, unless the file's SHA-256 is not the published one: then download it again"
# The largest header that the reference implementation of safetensors reads; no honest index is larger either.
JSON_LIMIT = 100_000_000
# Where a clone without git-lfs leaves a file of about 130 bytes in place of each large one.
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What helps where a file cannot be used.

    damaged: one that is not what was written.  made: one that was made so; nobody gets another by the same way.
    """

    damaged: str
    made: str


DOWNLOADED = Advice(damaged=AGAIN, made="its maker wrote it so: ask for a sound one, or take another release")
CONVERTED = Advice(damaged=RECONVERT, made=RECONVERT)


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


def is_inside(file: Path, folder: Path) -> bool:
    """Whether `file` leads to something in `folder`, or to a blob of the Hugging Face cache that `folder` is of."""
    target, inside = file.resolve(), folder.resolve()
    blobs = inside.parents[1] / "blobs" if inside.parent.name == "snapshots" else inside
    return target.is_relative_to(inside) or target.is_relative_to(blobs)


def is_there(file: Path) -> bool:
    """Whether there is such a file, for one that a folder may do without.

    Raises:
        CheckpointError: when something of its name is there that cannot be read, such as a link that leads nowhere.
    """
    return os.path.lexists(file) and bool(regular(file))


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turns what the system refuses while `file` is read into a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}; check the disk and the path") from error


@contextmanager
def opened(file: Path) -> Iterator[io.BufferedReader]:
    """`file` for reading, with the errors of `reading`; refuses a git-lfs pointer in its place."""
    with reading(file), file.open("rb") as stream:
        if stream.peek(len(_LFS_POINTER)).startswith(_LFS_POINTER):
            raise CheckpointError(
                f"{file} is a git-lfs pointer, not the file itself; run `git lfs pull` in {file.parent}"
            )
        yield stream


def read_json(file: Path, stream: io.BufferedReader, again: str = AGAIN) -> dict[str, object]:
    """The JSON object that an opened file holds.

    Raises:
        CheckpointError: when it is larger than `JSON_LIMIT`, or no such object.
    """
    if (size := os.fstat(stream.fileno()).st_size) > JSON_LIMIT:
        raise CheckpointError(f"{file} has {size} bytes, at most {JSON_LIMIT} are read; {again}")
    return parse_object(str(file), stream.read(), again)


def parse_object(what: str, raw: bytes, again: str = AGAIN) -> dict[str, object]:
    """The JSON object in `raw`, stricter than `json.loads`: UTF-8 only, and no key twice. `again`: what helps, if not.

    A byte order mark of UTF-8, which some editors put in front, is no part of it.

    Raises:
        CheckpointError: for anything else; `what` names the place.
    """
    made = DOWNLOADED.made if again == AGAIN else again  # whole JSON is no damage
    text = decoded(what, raw, again)  # here, because json.loads would take UTF-16 and UTF-32, too
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates)
        # "\ud800" is valid JSON for a string that no file and no terminal can hold.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except CheckpointError as error:
        raise CheckpointError(f"{what} is not valid JSON ({error}); {made}") from error
    except RecursionError as error:
        raise CheckpointError(f"{what} is not valid JSON (nested too deeply); {made}") from error
    except ValueError as error:
        raise CheckpointError(f"{what} is not valid JSON ({error}); {again}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is a JSON {type(value).__name__}, expected an object; {made}")
    return value


def decoded(what: str, raw: bytes, again: str = AGAIN) -> str:
    """The text of JSON in UTF-8.

    Raises:
        CheckpointError: for anything else. UTF-16 and UTF-32 are what editors of Windows write, and no damage.
    """
    encoding = json.detect_encoding(raw)
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{what} is not valid JSON ({error}); {again}") from error
    if not encoding.startswith("utf-8") and text.lstrip("\ufeff \t\r\n")[:1] in ("{", "["):
        raise CheckpointError(f"{what} is in {encoding.upper()}, expected UTF-8; save it as UTF-8")
    return text


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Two readers of an object with a key twice may each take another value, so neither is right."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise CheckpointError(f"key {twice!r} appears twice")
    return fields
