"""The journal of a conversion and the lock on it."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from convert import CheckpointError
from convert.journal import WORK, Header, Journal, Record, begin_journal, cut_journal, locked, read_journal, remove_work
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
