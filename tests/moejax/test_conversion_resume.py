"""What a conversion does with a folder in which there is something already."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moejax
from moejax._convert import CheckpointError
from moejax._convert.journal import WORK
from tests.messages import refuses, says
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


class Stopped(Exception):
    pass


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "hf", CONFIG, WEIGHTS, files=2)


def stop_after(items: int) -> Callable[[str, int, int], None]:
    """A progress function that ends the conversion, as if something else had failed, after so many items."""
    seen: list[int] = []

    def on_progress(phase: str, done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == items:
            raise Stopped

    return on_progress


def unfinished(source: Path, target: Path, **options: Any) -> Path:
    with pytest.raises(Stopped):
        moejax.convert(source, target, workers=1, on_progress=stop_after(3), **options)
    return target


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_byte(file: Path, position: float = 0.5) -> None:
    raw = bytearray(file.read_bytes())
    raw[int(len(raw) * position)] ^= 1
    file.write_bytes(raw)


def refusal(source: Path, target: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        moejax.convert(source, target, **options)
    return str(caught.value)


def round_trip(orbax: Path) -> None:
    back = orbax.with_name("back")
    moejax.convert(orbax, back)
    assert_same_tensors(tensors_in(back), WEIGHTS)


def test_continues_where_it_stopped(hf: Path, tmp_path: Path) -> None:
    target = unfinished(hf, tmp_path / "target")
    with refuses(ValueError, target, f"moejax convert {hf} {target}"):
        moejax.load(target)
    report = moejax.convert(hf, target)
    assert (report.kept, report.converted, report.items) == (3, 4, 7)
    assert not (target / WORK).exists()
    moejax.convert(hf, tmp_path / "whole")
    assert everything_in(target) == everything_in(tmp_path / "whole")
    round_trip(target)


def test_items_without_the_hashes_of_their_source_are_converted_again(hf: Path, tmp_path: Path) -> None:
    """As a kill leaves them that comes while a large file is still hashed."""
    target = unfinished(hf, tmp_path / "target")
    journal = target / WORK / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"hashes"' not in line]
    assert len(kept) < len(lines)
    journal.write_text("".join(kept))
    assert moejax.convert(hf, target).kept == 0
    round_trip(target)


def test_the_way_back_continues_too(hf: Path, tmp_path: Path) -> None:
    moejax.convert(hf, tmp_path / "orbax")
    target = unfinished(tmp_path / "orbax", tmp_path / "target", shard_size="20KB")
    assert not list(target.glob("*.safetensors")) and not (target / "config.json").exists()
    command = f"moejax convert {tmp_path / 'orbax'} {target} --shard-size 20000"
    with refuses(ValueError, "unfinished", command):
        moejax.load(target)
    assert moejax.convert(tmp_path / "orbax", target, shard_size="20KB").kept == 3
    assert_same_tensors(tensors_in(target), WEIGHTS)


def test_damage_in_what_was_done_is_found_and_written_again(hf: Path, tmp_path: Path) -> None:
    target = unfinished(hf, tmp_path / "target")
    flip_byte(largest_file(target / "weights" / "embed"))
    report = moejax.convert(hf, target, verify=False)
    assert list(report.redone) == ["embed"]
    assert str(target / "weights" / "embed") in report.redone["embed"] and "damaged" in report.redone["embed"]
    assert report.kept == 2
    round_trip(target)


@pytest.mark.parametrize("where", ["size", "content"])
def test_a_changed_source_is_found(hf: Path, tmp_path: Path, where: str) -> None:
    target = unfinished(hf, tmp_path / "target")
    changed = hf / "config.json"
    if where == "size":
        changed.write_text(changed.read_text() + " ")
    else:
        changed = hf / "model-00001-of-00002.safetensors"
        status = changed.stat()
        flip_byte(changed, 0.9)
        os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))  # nothing but its content tells
    message = refusal(hf, target)
    says(message, "changed", changed.name, "--restart")
    assert moejax.convert(hf, target, restart=True).kept == 0


def test_a_source_that_changes_meanwhile_is_found(hf: Path, tmp_path: Path) -> None:
    def change(phase: str, done: int, total: int) -> None:
        os.utime(hf / "config.json")

    with refuses(CheckpointError, "config.json", "changed"):
        moejax.convert(hf, tmp_path / "target", on_progress=change)
    with pytest.raises(ValueError, match="unfinished conversion"):
        moejax.load(tmp_path / "target")


def test_what_is_there_and_was_made_otherwise_is_told_by_what_differs(hf: Path, tmp_path: Path) -> None:
    orbax, back = tmp_path / "orbax", tmp_path / "back"
    moejax.convert(hf, orbax)
    says(refusal(hf, orbax, dtype="float32"), orbax, "without --dtype", "with --dtype float32", "--restart")
    moejax.convert(orbax, back, shard_size="5MB")
    says(refusal(orbax, back), back, "with --shard-size 5000000", "with --shard-size 5000000000", "--restart")
    says(refusal(hf, back), back, "to safetensors", "to orbax", "--restart")
    other = write_hf(tmp_path / "other", CONFIG, weights_of(CONFIG, seed=1), files=2)
    says(refusal(other, orbax), orbax, "source", "model-00001-of-00002.safetensors", "--restart")


def test_other_options_are_refused(hf: Path, tmp_path: Path) -> None:
    target = unfinished(hf, tmp_path / "target")
    message = refusal(hf, target, dtype="bfloat16")
    says(message, "without --dtype", "with --dtype bfloat16", f"moejax convert {hf} {target}")
    moejax.convert(hf, target)
    says(refusal(hf, target, dtype="bf16"), "finished", "with --dtype bfloat16")
    assert moejax.convert(hf, target, dtype="bf16", restart=True).converted == 7


def test_a_finished_one_is_checked_again(hf: Path, tmp_path: Path) -> None:
    moejax.convert(hf, tmp_path / "target")
    before = everything_in(tmp_path / "target")
    report = moejax.convert(hf, tmp_path / "target")
    assert (report.converted, report.kept, report.checked) == (0, 7, True)
    assert everything_in(tmp_path / "target") == before
    flip_byte(largest_file(tmp_path / "target" / "weights"))
    says(refusal(hf, tmp_path / "target"), "damaged")
    says(refusal(tmp_path / "target", tmp_path / "back"), "damaged")
    with refuses(ValueError, "damaged"):
        moejax.load(tmp_path / "target")
    moejax.convert(hf, tmp_path / "target", restart=True)
    assert everything_in(tmp_path / "target") == before


def test_a_damaged_manifest_needs_restart(hf: Path, tmp_path: Path) -> None:
    moejax.convert(hf, tmp_path / "target")
    (tmp_path / "target" / "manifest.json").write_text('{"format": "moejax-orbax"')
    says(refusal(hf, tmp_path / "target"), "manifest.json", "JSON")
    moejax.convert(hf, tmp_path / "target", restart=True)
    round_trip(tmp_path / "target")


def test_something_else_is_refused_and_kept(hf: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    for option in ({}, {"restart": True}):
        says(refusal(hf, target, **option), "'notes.txt'", "--force")
        assert everything_in(target) == {"notes.txt": b"mine"}
    moejax.convert(hf, target, force=True)
    assert (target / "notes.txt").read_text() == "mine"
    round_trip(target)
    (tmp_path / "file").write_text("")
    says(refusal(hf, tmp_path / "file"), "file", "folder")


def test_weights_that_are_there_are_replaced_with_force(hf: Path, tmp_path: Path) -> None:
    moejax.convert(hf, tmp_path / "orbax")
    target = write_hf(tmp_path / "target", CONFIG, weights_of(CONFIG, seed=1))
    moejax.convert(tmp_path / "orbax", target, force=True, shard_size="20KB")
    assert not (target / "model.safetensors").exists()
    assert_same_tensors(tensors_in(target), WEIGHTS)


@pytest.mark.parametrize("stage", ["conversion.remove", "safetensors_target.SafetensorsTarget.publish"])
def test_a_restart_that_is_stopped_never_shows_the_old_weights(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The old files have the names of the new ones, so that only the order of the steps keeps them apart."""
    other = write_hf(tmp_path / "other", CONFIG, weights_of(CONFIG, seed=1))
    moejax.convert(hf, tmp_path / "orbax")
    moejax.convert(other, tmp_path / "other-orbax")
    target = tmp_path / "target"
    moejax.convert(tmp_path / "other-orbax", target)

    def stop(*_: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(f"moejax._convert.{stage}", stop)
        moejax.convert(tmp_path / "orbax", target, restart=True)
    with pytest.raises(ValueError, match="unfinished conversion"):
        moejax.load(target)
    moejax.convert(tmp_path / "orbax", target)
    assert_same_tensors(tensors_in(target), WEIGHTS)


def test_stopped_before_the_journal(hf: Path, tmp_path: Path) -> None:
    (tmp_path / "target" / WORK).mkdir(parents=True)
    with refuses(ValueError, "unfinished", "moejax convert SOURCE"):
        moejax.load(tmp_path / "target")
    moejax.convert(hf, tmp_path / "target")
    round_trip(tmp_path / "target")


def test_a_folder_whose_manifest_is_lost_is_no_checkpoint(hf: Path, tmp_path: Path) -> None:
    moejax.convert(hf, tmp_path / "target")
    (tmp_path / "target" / "manifest.json").unlink()
    with refuses(ValueError, "weights/", "manifest.json"):
        moejax.load(tmp_path / "target")


def test_the_manifest_names_the_source_by_its_hashes(hf: Path, tmp_path: Path) -> None:
    import hashlib

    moejax.convert(hf, tmp_path / "target")
    manifest = json.loads((tmp_path / "target" / "manifest.json").read_text())
    for name in ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        assert manifest["source_files"][name] == hashlib.sha256((hf / name).read_bytes()).hexdigest()
    assert manifest["moejax_version"] == moejax.__version__
    assert manifest["files"]["config.json"] == manifest["source_files"]["config.json"]
    assert str(tmp_path) not in json.dumps(manifest)
