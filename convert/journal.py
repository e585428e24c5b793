"""The work folder of a conversion: its lock, and the journal of what is done, so that a stopped one can go on.

Its presence without a manifest is what makes a folder an unfinished conversion. The journal is a line of JSON for each
step. A step is on the disk before its line is written, so whatever a line says is true at any moment of a crash.
"""

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moejax._convert.durable import remove, sync, write_atomically
from moejax._convert.errors import CheckpointError, shown
from moejax._convert.files import opened, parse_object
from moejax._convert.manifest import FORMATS, Format

WORK = ".moejax-conversion"
_LOCK, _JOURNAL = "lock", "journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was written for one array: the checksum of its bytes, and whether all values are finite."""

    checksum: str
    finite: bool


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a conversion is: it may be continued by one with the same, `source` aside, which is for messages.

    source_files: names and sizes of the files of the source.  options: those that change the result.
    """

    source: str
    source_format: str
    target_format: Format
    source_files: Mapping[str, int]
    options: Mapping[str, str]


@dataclass
class Journal:
    """The steps done so far: SHA-256 of source files by name, and finished items with their arrays."""

    path: Path
    header: Header
    hashes: dict[str, str] = field(default_factory=dict)
    items: dict[str, dict[str, Record]] = field(default_factory=dict)
    _writing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add_hashes(self, hashes: Mapping[str, str]) -> None:
        """Notes source files that finished items were, or will be, read from."""
        with self._writing:
            if new := {name: digest for name, digest in hashes.items() if self.hashes.get(name) != digest}:
                self._append({"hashes": new})
                self.hashes |= new

    def add_item(self, item: str, records: Mapping[str, Record]) -> None:
        """Notes that an item is on the disk."""
        with self._writing:
            self._append({"item": item, "arrays": {name: asdict(record) for name, record in records.items()}})
            self.items[item] = dict(records)

    def drop_item(self, item: str) -> None:
        """Notes that an item was found damaged and has to be written again."""
        with self._writing:
            self._append({"dropped": item})
            del self.items[item]

    def _append(self, step: Mapping[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(step).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def begin_journal(folder: Path, header: Header) -> Journal:
    """A new journal in the work folder of the target `folder`, in place of one that may be there."""
    work = folder / WORK
    write_atomically(work / _JOURNAL, json.dumps({"header": asdict(header)}).encode() + b"\n", scratch=work)
    sync(folder)
    return Journal(path=work / _JOURNAL, header=header)


def read_journal(folder: Path) -> Journal | None:
    """The journal in `folder`, or None: there is no conversion, or it was stopped before it wrote anything.

    Raises:
        CheckpointError: when it is damaged.
    """
    path = folder / WORK / _JOURNAL
    if not os.path.lexists(path):
        return None
    with opened(path) as stream:
        raw = stream.read()
    whole = raw[: raw.rfind(b"\n") + 1]  # a crash of the machine may leave half of the last line
    try:
        first, *steps = (parse_object("a line", line, "") for line in whole.splitlines())
        journal = Journal(path=path, header=_header(_object(first, "header")))
        for step in steps:
            _replay(journal, step)
    except (CheckpointError, KeyError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error).removesuffix("; ")
        raise CheckpointError(f"{path} is damaged ({reason or 'it is empty'}); begin anew with --restart") from error
    return journal


def is_begun(folder: Path) -> bool:
    """Whether there is a journal in `folder`."""
    return os.path.lexists(folder / WORK / _JOURNAL)


def cut_journal(journal: Journal) -> None:
    """Removes half a last line, so that the next one begins where a line begins."""
    raw = journal.path.read_bytes()
    os.truncate(journal.path, raw.rfind(b"\n") + 1)


def _replay(journal: Journal, step: Mapping[str, Any]) -> None:
    if "hashes" in step:
        journal.hashes |= _strings(step, "hashes")
    elif "item" in step:
        arrays = _object(step, "arrays")
        journal.items[_string(step, "item")] = {name: _record(_object(arrays, name)) for name in arrays}
    else:
        del journal.items[_string(step, "dropped")]


def _header(raw: Mapping[str, Any]) -> Header:
    sizes = _object(raw, "source_files")
    if wrong := [name for name, size in sizes.items() if type(size) is not int]:
        raise CheckpointError(f"the size of {wrong[0]!r} is {shown(sizes[wrong[0]])}")
    if (target := _string(raw, "target_format")) not in FORMATS:
        raise CheckpointError(f"target_format is {shown(target)}")
    return Header(
        source=_string(raw, "source"),
        source_format=_string(raw, "source_format"),
        target_format=target,
        source_files=sizes,
        options=_strings(raw, "options"),
    )


def _record(raw: Mapping[str, Any]) -> Record:
    if not isinstance(finite := raw["finite"], bool):
        raise CheckpointError(f"finite is {shown(finite)}")
    return Record(checksum=_string(raw, "checksum"), finite=finite)


def _object(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(value := raw[key], dict):
        raise CheckpointError(f"{shown(key)} is {shown(value)}, expected an object")
    return value


def _string(raw: Mapping[str, Any], key: str) -> str:
    if not isinstance(value := raw[key], str):
        raise CheckpointError(f"{key} is {shown(value)}, expected a string")
    return value


def _strings(raw: Mapping[str, Any], key: str) -> dict[str, str]:
    found = _object(raw, key)
    return {name: _string(found, name) for name in found}


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Holds the work folder of `folder`, making both where they are missing. The system frees it when a process ends.

    Raises:
        CheckpointError: when another process holds it.
    """
    work = folder / WORK
    while True:
        work.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(work / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another process ended just now and has removed the folder
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise CheckpointError(
                f"another conversion into {folder} is running; wait until it has ended, or give another folder"
            ) from error
        if _is_there(work / _LOCK, descriptor):
            break
        os.close(descriptor)
    try:
        yield work
    finally:
        os.close(descriptor)


def remove_work(folder: Path) -> None:
    """Removes the work folder; to be called while it is locked.

    By another name: under its own, a process that looks for the lock just now would make one in a folder that is being
    removed. What is left when this is killed goes with the next call.
    """
    ended = folder / f"{WORK}.ended"
    remove(ended)
    os.rename(folder / WORK, ended)
    remove(ended)


def _is_there(path: Path, descriptor: int) -> bool:
    """Whether `path` still names the file that was opened."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
