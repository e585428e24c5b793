"""Two processes that convert into one folder: the second refuses while the first lives, and goes on when it is dead."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import moejax
from moejax._convert import CheckpointError
from tests.messages import error_line, refuses
from tests.moejax.conversion_folders import (
    assert_same_tensors,
    config_of,
    everything_in,
    tensors_in,
    weights_of,
    write_hf,
)

CONFIG = config_of(num_hidden_layers=1, num_local_experts=3)
WEIGHTS = weights_of(CONFIG)
SECONDS = 300
ITEMS = 3  # that are done when the first is held

# Converts one item at a time, and notes each at once: the hash of its source, which takes another thread any time, is
# waited for. After a few items it says so and waits for a line.
HELD = """
import sys
import moejax
from moejax._convert.source_hashes import SourceHashes

SourceHashes.found = lambda self: self.of(list(self._hashes))
seen = []

def hold(phase, done, total):
    seen.append(done)
    if len(seen) == int(sys.argv[3]):
        print("held", flush=True)
        sys.stdin.readline()

report = moejax.convert(sys.argv[1], sys.argv[2], workers=1, on_progress=hold)
print(report.converted, report.kept, report.checked)
"""


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "hf", CONFIG, WEIGHTS, files=2)


@contextmanager
def held(source: Path, target: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of a conversion, for the time of the block."""
    command = [sys.executable, "-c", HELD, str(source), str(target), str(ITEMS)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_second_refuses_and_the_first_ends_intact(hf: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with held(hf, target) as first:
        command = [sys.executable, "-m", "moejax", "convert", str(hf), str(target)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert (second.returncode, second.stdout) == (2, "")
        error_line(second.stderr, target, "running")
        out, _ = first.communicate("go on\n", timeout=SECONDS)
        assert (first.returncode, out) == (0, "7 0 True\n")
    moejax.convert(hf, tmp_path / "alone")
    assert everything_in(target) == everything_in(tmp_path / "alone")
    moejax.convert(target, tmp_path / "back")
    assert_same_tensors(tensors_in(tmp_path / "back"), WEIGHTS)


def test_the_second_goes_on_where_a_killed_one_stopped(hf: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with held(hf, target) as first:
        with refuses(CheckpointError, target, "running"):
            moejax.convert(hf, target, restart=True)
        first.kill()
        first.wait(timeout=SECONDS)
        report = moejax.convert(hf, target)
    assert (report.kept, report.converted) == (ITEMS, 7 - ITEMS)
    moejax.convert(target, tmp_path / "back")
    assert_same_tensors(tensors_in(tmp_path / "back"), WEIGHTS)
