"""Disks that are full or cannot be written: one clear error, and nothing that could be taken for a checkpoint."""

import sys
from pathlib import Path

import pytest

import moejax
from tests.messages import error_line, says
from tests.moejax.conversion_folders import config_of, weights_of, write_hf
from tests.moejax.small_disks import MOEJAX, run_on_disk

CONFIG = config_of(num_hidden_layers=1, num_local_experts=3, hidden_size=256)  # 1.1 MB


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("disk") / "hf", CONFIG, weights_of(CONFIG))


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(hf: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    done = run_on_disk(disk, "1m", *MOEJAX, "convert", str(hf), str(disk / "target"))
    assert done.returncode == 2
    assert done.stdout == "there: \n"
    error_line(done.stderr, disk / "target", "0.001 GB", "0.001 GB", "make room")


# Fills the disk when the first item is done and noted with the hash of its source, which another thread finds and is
# waited for; then loads; then frees the disk and converts again.
FILL = """
import sys
import moejax
from moejax._convert.source_hashes import SourceHashes
from pathlib import Path

SourceHashes.found = lambda self: self.of(list(self._hashes))
source, target = sys.argv[1:]
filler = Path(target).with_name("filler")

def fill(phase, done, total):
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            assert error.errno == 28, error

for attempt in ("convert", "load", "continue"):
    try:
        if attempt == "convert":
            moejax.convert(source, target, on_progress=fill, workers=1)
        elif attempt == "load":
            moejax.load(target)
        else:
            filler.unlink()
            print(attempt, moejax.convert(source, target).kept)
    except ValueError as error:
        print(attempt, type(error).__name__, error)
"""


@pytest.mark.parametrize("direction", ["to Orbax", "to Hugging Face"])
def test_a_disk_that_fills_up_meanwhile(hf: Path, tmp_path: Path, direction: str) -> None:
    disk, source = tmp_path / "disk", hf
    if direction == "to Hugging Face":
        source = tmp_path / "orbax"
        moejax.convert(hf, source)
    target = disk / "target"
    done = run_on_disk(disk, "8m", sys.executable, "-c", FILL, str(source), str(target))
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, ""), "the error is all that is said"
    says(lines[0], "convert CheckpointError", target, "disk is full", "make room")
    says(lines[1], "load CheckpointError", target, "unfinished", "moejax convert")
    assert lines[2] == "continue 1"
    assert lines[3] == "there: target "


def test_a_target_that_cannot_be_written(hf: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    done = run_on_disk(disk, "8m", *MOEJAX, "convert", str(hf), str(disk / "target"), read_only=True)
    assert (done.returncode, done.stdout) == (2, "there: \n")
    error_line(done.stderr, disk / "target", "Read-only file system")
