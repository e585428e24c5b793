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

from moejax.bulk.lines import Line, Survey, read_lines

_BEGINNINGS = (b'{"custom_id": "', b'{"id": "batch_req_')  # of the lines: what is half-written begins as one of them
SYNC_SECONDS = 1.0  # how much of the work a crash of the machine may cost


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a file of answers is to: the lines of `source`, found by `survey`, asked of a model with flags.

    model: its short name.  flags: what lines that say nothing else get, as a digest.
    """

    source: Path
    survey: Survey
    model: str
    flags: str

    def stamp(self, custom_id: str) -> dict[str, str]:
        """What an answer carries, so that a later run can tell whether it would ask for the same."""
        return {"line": self.survey.digests[custom_id], "model": self.model, "flags": self.flags}

    def lines(self) -> Iterator[Line]:
        """Reads the lines again.

        Raises:
            ValueError: at one that is not as it was surveyed.
        """
        for line in read_lines(self.source):
            if self.survey.digests.get(line.custom_id) != line.digest:
                raise ValueError(
                    f"{self.source}: line {line.number} was edited while this run was under way; run the same command "
                    "again"
                )
            yield line


@dataclass(kw_only=True)
class Answers:
    """An opened file of answers.

    done: custom_ids of the answers in it.  failed: how many of them are errors.
    """

    asked: Asked
    stream: BinaryIO
    done: set[str] = field(default_factory=set)
    failed: int = 0
    _synced: float = field(default_factory=time.monotonic)

    def write(self, answer: Mapping[str, Any]) -> None:
        """Appends a line. It is on its way to the disk when this returns, and there a second later."""
        self.stream.write(_written({**answer, "asked": self.asked.stamp(answer["custom_id"])}))
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


def check_target(path: Path, asked: Asked) -> None:
    """What `opened` would raise, told before a model is loaded; nothing is made or changed.

    Raises:
        ValueError, OSError: as `opened`.
    """
    if path.exists():
        if not path.is_file():
            raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}; give another --output")
        _refuse_input(path, asked)
        with path.open("r+b") as stream:  # as it will be written: who may only read is told so
            _lock(stream, path)
            _read_answers(stream, path, asked)
    elif not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(
            f"{path}: no file can be made in {path.parent}; give another --output, or chmod u+w the folder"
        )


@contextmanager
def opened(path: Path, asked: Asked) -> Iterator[Answers]:
    """The file of answers at `path`, made where there is none; a half-written last line is taken off it.

    asked: what the answers have to be to.

    Raises:
        ValueError: where the file holds something else or is the input, or another run writes to it.
        OSError: where it cannot be written.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is no regular file, which a later run could go on behind; give another --output")
    _refuse_input(path, asked)
    with path.open("a+b") as stream:
        _lock(stream, path)
        answers, whole = _read_answers(stream, path, asked)
        stream.truncate(whole)
        try:
            yield answers
        finally:
            answers.sync()


def _refuse_input(path: Path, asked: Asked) -> None:
    if path.exists() and path.samefile(asked.source):
        raise ValueError(
            f"{path} is the input, {asked.source}, which answers would be written into; give another --output"
        )


def _lock(stream: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"{path} is being written by another run; give another --output") from error


def _read_answers(stream: BinaryIO, path: Path, asked: Asked) -> tuple[Answers, int]:
    """The answers that are in the file, and the bytes up to the end of its last whole line."""
    answers = Answers(asked=asked, stream=stream)
    outdated: dict[str, str] = {}  # by the custom_id: what of the question is another now
    stream.seek(0)
    whole = 0
    for number, raw in enumerate(stream, start=1):
        if not raw.endswith(b"\n") and any(raw[: len(one)] == one[: len(raw)] for one in _BEGINNINGS):
            break
        whole += len(raw)
        answer = _parsed(raw) if raw.endswith(b"\n") else None
        if answer is None:
            raise ValueError(f"{path}: line {number} is no answer of a run like this; give another --output")
        if (name := answer["custom_id"]) not in asked.survey.numbers:
            raise ValueError(
                f"{path}: line {number} answers {name!r:.80}, which is not in {asked.source}; give another --output"
            )
        if name in answers.done:
            raise ValueError(f"{path}: line {number} is a second answer to {name!r:.80}; delete one of the two")
        if why := _outdated(answer.get("asked"), asked, name):
            outdated[name] = f"line {number} answers {name!r:.80}, {why}"
        answers.note(answer)
    if outdated:
        others = f" ({len(outdated) - 1:,} more are like it)" if len(outdated) > 1 else ""
        raise ValueError(
            f"{path}: {next(iter(outdated.values()))}{others}; delete such lines there to have them answered anew, or "
            "give another --output"
        )
    return answers, whole


def _outdated(stamp: object, asked: Asked, custom_id: str) -> str | None:
    """Why an answer with this stamp is not one to what is asked now; None where it is."""
    if not isinstance(stamp, dict):
        return "and does not say what was asked"
    now, number = asked.stamp(custom_id), asked.survey.numbers[custom_id]
    differs = next((part for part in now if stamp.get(part) != now[part]), None)
    reasons = {
        "line": f"but line {number} of {asked.source} was edited since",
        "model": f"but by the model {stamp.get('model')!r:.80}, and this run has {asked.model!r:.80}",
        "flags": "but sampling flags, --chat or --system were others",
    }
    return reasons.get(differs) if differs else None


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
