"""A conversion that is killed at any moment is never loadable by mistake, and ends as one that was not."""

import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import moejax
from moejax._convert import CheckpointError, OrbaxFolder
from moejax._convert.journal import WORK, read_journal
from moejax.checkpoint import open_checkpoint
from tests.messages import refuses
from tests.moejax.conversion_folders import (
    assert_same_tensors,
    config_of,
    everything_in,
    tensors_in,
    weights_of,
    write_hf,
)
from tests.moejax.forked import start

SECONDS = 300
# What a whole conversion of the source does to its target: each is killed after so many steps at most.
TO_ORBAX, TO_HUGGING_FACE = 1660, 200


@dataclass
class Kills:
    """What was found after each kill of a running conversion."""

    before: int = 0  # before there was a target
    without_items: int = 0
    with_items: int = 0

    @property
    def total(self) -> int:
        return self.before + self.without_items + self.with_items


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_of(num_hidden_layers=3, num_local_experts=8)
    return write_hf(tmp_path_factory.mktemp("kill") / "hf", config, weights_of(config), files=3)


@pytest.mark.slow
def test_to_orbax(source: Path, tmp_path: Path) -> None:
    kills = kill_until(16, source, tmp_path, steps=TO_ORBAX, seed=0)
    # Most have to fall between the items, not before the first or after the last.
    assert kills.with_items >= 8, kills


@pytest.mark.slow
def test_to_hugging_face(source: Path, tmp_path: Path) -> None:
    moejax.convert(source, tmp_path / "orbax")
    kills = kill_until(10, tmp_path / "orbax", tmp_path, "--shard-size", "40KB", steps=TO_HUGGING_FACE, seed=1)
    assert kills.with_items + kills.without_items >= 5, kills


def kill_until(times: int, source: Path, folder: Path, *options: str, steps: int, seed: int) -> Kills:
    """Kills conversions after random numbers of steps, `times` in all, each continued until it is finished; compares
    every one."""
    whole = folder / "whole"
    finish(source, whole, options)
    rng = np.random.default_rng(seed)
    kills, number = Kills(), 0
    while kills.total < times:
        target = folder / f"target-{number}"
        moment = int(rng.integers(1, steps))
        process = start("convert", source, target, *options, "--quiet", killed_at=(target, moment))
        process.join(SECONDS)
        assert process.exitcode in (0, -signal.SIGKILL)
        if look(target, kills):
            assert_same(target, whole)
            number += 1
    target = folder / f"target-{number}"
    finish(source, target, options)
    assert_same(target, whole)
    return kills


def finish(source: Path, target: Path, options: tuple[str, ...]) -> None:
    """Converts, or goes on to the end."""
    process = start("convert", source, target, *options, "--quiet")
    process.join(SECONDS)
    assert process.exitcode == 0


def look(target: Path, kills: Kills) -> bool:
    """Whether `target` is complete; if not, counts the state in which a kill has left it, which nothing loads."""
    if (target / "manifest.json").exists():
        open_checkpoint(target)
        return True
    if not target.exists() or not (target / WORK).exists():
        kills.before += 1
        assert not target.exists() or not any(target.iterdir())
        return False
    journal = read_journal(target)
    if journal is not None and journal.items:
        kills.with_items += 1
    else:
        kills.without_items += 1
    with refuses(CheckpointError, "unfinished", "moejax convert"):
        open_checkpoint(target)  # the first that `load` does
    return False


def assert_same(target: Path, whole: Path) -> None:
    """Array for array, and every other file byte for byte. A work folder may remain of a kill after the end."""
    found = {name: raw for name, raw in everything_in(target).items() if not name.startswith(WORK)}
    assert found == everything_in(whole)
    if (whole / "weights").exists():
        opened = [OrbaxFolder.open(folder) for folder in (target, whole)]
        assert_same_tensors(*({name: one.read(name) for name in one.tensors} for one in opened))
        assert {path.name for path in (target / "weights").iterdir()} == {
            path.name for path in (whole / "weights").iterdir()
        }
    else:
        assert_same_tensors(tensors_in(target), tensors_in(whole))
