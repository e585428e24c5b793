"""The journal of a conversion and the lock on it."""

import json
import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax._convert import CheckpointError
from moejax._convert.journal import (
    WORK,
    Header,
    Journal,
    Record,
    begin_journal,
    cut_journal,
    locked,
    read_journal,
    remove_work,
)
from tests.messages import refuses

HEADER = Header(
    source="/hf",
    source_format="safetensors",
    target_format="orbax",
    source_files={"model": 3},
    options={"--dtype": "x"},
)
RECORDS = {
    "a": Record(checksum="crc32:00000001", finite=True),
    "b": Record(checksum="crc32:00000002", finite=False),
}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    with locked(tmp_path):
        made = begin_journal(tmp_path, HEADER)
    made.add_hashes({"model": "ab"})
    made.add_item("one", RECORDS)
    made.add_item("two", RECORDS)
    made.drop_item("one")
    return made


def test_reads_back_every_step(tmp_path: Path, journal: Journal) -> None:
    found = read_journal(tmp_path)
    assert found is not None
    assert (found.header, found.hashes, found.items) == (HEADER, {"model": "ab"}, {"two": RECORDS})


def test_half_a_line_is_a_step_that_was_not_done(tmp_path: Path, journal: Journal) -> None:
    with journal.path.open("ab") as file:
        file.write(b'{"item": "three", "arr')
    found = read_journal(tmp_path)
    assert found is not None and found.items == {"two": RECORDS}
    cut_journal(found)
    found.add_item("three", RECORDS)
    again = read_journal(tmp_path)
    assert again is not None and again.items.keys() == {"two", "three"}


@pytest.mark.parametrize(
    "line", [b"[]", b"{}", b'{"item": "x", "arrays": {"a": {"nonsense": 1}}}', b'{"dropped": "one"}']
)
def test_a_damaged_line_is_told(tmp_path: Path, journal: Journal, line: bytes) -> None:
    with journal.path.open("ab") as file:
        file.write(line + b"\n")
    with refuses(CheckpointError, "journal.jsonl", "--restart"):
        read_journal(tmp_path)


def test_no_journal(tmp_path: Path) -> None:
    assert read_journal(tmp_path) is None


def test_a_second_one_is_refused_and_the_next_is_not(tmp_path: Path) -> None:
    with locked(tmp_path):
        with refuses(CheckpointError, "another conversion", "running"), locked(tmp_path):
            pass
        remove_work(tmp_path)
        assert not (tmp_path / WORK).exists()
    with locked(tmp_path):
        pass


def test_one_that_comes_while_the_work_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ends in peace, and the next holds a lock that others see."""
    with ExitStack() as second:
        rmdir = os.rmdir

        def come_first(path: str, **options: Any) -> None:
            monkeypatch.setattr(os, "rmdir", rmdir)
            second.enter_context(locked(tmp_path))
            rmdir(path, **options)

        monkeypatch.setattr(os, "rmdir", come_first)
        with locked(tmp_path):
            remove_work(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [WORK]
        with refuses(CheckpointError, "another conversion", "running"), locked(tmp_path):
            pass


LINES = [
    {"header": asdict(HEADER)},
    {"hashes": {"model": "ab"}},
    {"item": "one", "arrays": {name: asdict(record) for name, record in RECORDS.items()}},
    {"dropped": "one"},
]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats(allow_nan=False) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


def with_junk(value: Any, path: list[int], junk: Any) -> Any:
    """`value` with `junk` in the place where `path` ends: its numbers choose among what an object has."""
    if not path or not isinstance(value, dict):
        return junk
    key = list(value)[path[0] % len(value)]
    return value | {key: with_junk(value[key], path[1:], junk)}


@given(line=st.integers(0, 3), path=st.lists(st.integers(0, 9), max_size=4), junk=JUNK)
def test_a_journal_of_wrong_types_is_damaged(
    tmp_path_factory: pytest.TempPathFactory, line: int, path: list[int], junk: Any
) -> None:
    """It is read as steps of the right types, or not at all."""
    folder = tmp_path_factory.mktemp("junk")
    (folder / WORK).mkdir()
    lines = [*LINES]
    lines[line] = with_junk(lines[line], path, junk)
    (folder / WORK / "journal.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    try:
        found = read_journal(folder)
    except CheckpointError as error:
        assert "journal.jsonl" in str(error) and "--restart" in str(error)
        return
    assert found is not None and isinstance(found.header.source, str)
    assert all(isinstance(value, str) for value in (*found.header.options.values(), *found.hashes.values()))
    assert all(isinstance(size, int) for size in found.header.source_files.values())
    records = [record for item in found.items.values() for record in item.values()]
    assert all(isinstance(record.checksum, str) and isinstance(record.finite, bool) for record in records)


@pytest.mark.parametrize("raw", [b"", b"\n", b"\xff\n", b"1\n", b"[" * 9999 + b"\n", b'{"header": 1}\n'])
def test_what_is_no_journal(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / WORK).mkdir()
    (tmp_path / WORK / "journal.jsonl").write_bytes(raw)
    with refuses(CheckpointError, "journal.jsonl", "damaged", "--restart"):
        read_journal(tmp_path)
