"""The file of answers: one line each, as they come; a second run goes on behind what is there. Imports no JAX."""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

_BEGINNINGS = (b'{"custom_id": "', b'{"id": "batch_req_')  # of the lines: what is half-written begins as one of them
SYNC_SECONDS = 1.0  # how much of the work a crash of the machine may cost


@dataclass(kw_only=True)
class Answers:
    """An opened file of answers.

    done: custom_ids of the answers in it.  failed: how many of them are errors.
    """

    stream: BinaryIO
    done: set[str] = field(default_factory=set)
    failed: int = 0
    _synced: float = field(default_factory=time.monotonic)

    def write(self, answer: Mapping[str, Any]) -> None:
        """Appends a line. It is on its way to the disk when this returns, and there a second later."""
        self.stream.write(_written(answer))
        self.stream.flush()
        self.note(answer)
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self.sync()

    def note(self, answer: Mapping[str, Any]) -> None:
        """Counts an answer that is in the file."""
        self.done.add(answer["custom_id"])
        self.failed += is_error(answer)

    def sync(self) -> None:
        """Waits until all that was written is on the disk."""
        os.fsync(self.stream.fileno())
        self._synced = time.monotonic()


def check_target(path: Path, asked: Mapping[str, int], source: Path) -> None:
    """What `opened` would raise, told before a model is loaded; nothing is made or changed.

    Raises:
        ValueError, OSError: as `opened`.
    """
    if path.exists():
        if not path.is_file():
            raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}; give another --output")
        if path.samefile(source):
            raise ValueError(
                f"{path} is the input, {source}, which answers would be written into; give another --output"
            )
        with path.open("r+b") as stream:  # as it will be written: who may only read is told so
            _lock(stream, path)
            _read_answers(stream, path, asked, source)
    elif not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(
            f"{path}: no file can be made in {path.parent}; give another --output, or chmod u+w the folder"
        )


@contextmanager
def opened(path: Path, asked: Mapping[str, int], source: Path) -> Iterator[Answers]:
    """The file of answers at `path`, made where there is none; a half-written last line is taken off it.

    asked: the custom_ids of `source`, which the answers have to be to.

    Raises:
        ValueError: where the file holds something else or is `source`, or another run writes to it.
        OSError: where it cannot be written.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is no regular file, which a later run could go on behind; give another --output")
    if path.exists() and path.samefile(source):
        raise ValueError(f"{path} is the input as well; give another --output")
    with path.open("a+b") as stream:
        _lock(stream, path)
        answers, whole = _read_answers(stream, path, asked, source)
        stream.truncate(whole)
        try:
            yield answers
        finally:
            answers.sync()


def _lock(stream: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"{path} is being written by another run; give another --output") from error


def _read_answers(stream: BinaryIO, path: Path, asked: Mapping[str, int], source: Path) -> tuple[Answers, int]:
    """The answers that are in the file, and the bytes up to the end of its last whole line."""
    answers = Answers(stream=stream)
    stream.seek(0)
    whole = 0
    for number, raw in enumerate(stream, start=1):
        if not raw.endswith(b"\n") and any(raw[: len(one)] == one[: len(raw)] for one in _BEGINNINGS):
            break
        whole += len(raw)
        answer = _parsed(raw) if raw.endswith(b"\n") else None
        if answer is None:
            raise ValueError(f"{path}: line {number} is no answer of a run like this; give another --output")
        if answer["custom_id"] not in asked:
            raise ValueError(
                f"{path}: line {number} answers {answer['custom_id']!r:.80}, which is not in {source}; "
                "give another --output"
            )
        answers.note(answer)
    return answers, whole


def is_error(answer: Mapping[str, Any]) -> bool:
    """Whether a line of answers says that something failed."""
    response = answer.get("response")
    return answer.get("error") is not None or (isinstance(response, dict) and response.get("status_code") != 200)


def _written(answer: Mapping[str, Any]) -> bytes:
    """A line. What UTF-8 cannot hold, a lone surrogate, is escaped, so that it is read again as it was."""
    try:
        return (json.dumps(answer, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(answer, allow_nan=False) + "\n").encode()


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("custom_id"), str) else None
