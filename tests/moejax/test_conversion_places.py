"""What a conversion leaves alone: disks without room, links, and files that are nobody's but their owner's."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

import moejax
from moejax._convert import admission
from moejax._convert.journal import WORK
from tests.messages import says
from tests.moejax.conversion_folders import config_of, everything_in, weights_of, write_hf
from tests.moejax.test_conversion_resume import refusal

CONFIG = config_of(num_hidden_layers=1, num_local_experts=2)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "hf", CONFIG, weights_of(CONFIG))


def has_free(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    monkeypatch.setattr(admission.shutil, "disk_usage", lambda path: Usage(nbytes, 0, nbytes))


def test_without_room_nothing_is_left(hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    has_free(monkeypatch, 10_000)
    for target in (tmp_path / "empty", tmp_path / "new" / "deep"):
        says(refusal(hf, target), target, "GB are needed")
    assert list((tmp_path / "empty").iterdir()) == [] and not (tmp_path / "new").exists()


def test_without_room_a_restart_leaves_what_is_there(hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    moejax.convert(hf, target)
    before = everything_in(target)
    has_free(monkeypatch, 0)
    says(refusal(hf, target, restart=True, dtype="float32", force=True), "GB are needed")
    assert everything_in(target) == before and (target / "weights" / "embed").is_dir()
    has_free(monkeypatch, 800_000)  # beside what the restart removes
    assert moejax.convert(hf, target, restart=True).converted
    moejax.load(target)


@pytest.mark.parametrize("name", [WORK, "weights"])
@pytest.mark.parametrize("option", [{}, {"force": True}, {"restart": True, "force": True}], ids=str)
def test_a_folder_that_is_a_link_is_not_emptied(hf: Path, tmp_path: Path, name: str, option: dict[str, bool]) -> None:
    target, other = tmp_path / "target", tmp_path / "other"
    target.mkdir()
    for kept in ("items/a", "files/b", "layers.0.experts.0/_METADATA"):
        (other / kept).parent.mkdir(parents=True, exist_ok=True)
        (other / kept).write_text("mine")
    (target / name).symlink_to(other)
    refusal(hf, target, **option)
    assert len(list(other.rglob("*"))) == 6 and (target / name).is_symlink()


def test_a_target_that_is_a_link_keeps_what_is_not_of_a_conversion(hf: Path, tmp_path: Path) -> None:
    other, target = tmp_path / "other", tmp_path / "link"
    (other / "weights" / "mine").mkdir(parents=True)
    (other / "weights" / "mine" / "thesis.txt").write_text("years")
    (other / "notes.md").write_text("mine")
    target.symlink_to(other)
    moejax.convert(hf, target, force=True)
    moejax.convert(hf, target, restart=True, dtype="bfloat16")
    assert (other / "weights" / "mine" / "thesis.txt").read_text() == "years"
    assert (other / "notes.md").read_text() == "mine"
    assert moejax.load(target).config.num_experts == 2


def test_a_link_with_the_name_of_a_file_to_write_is_replaced_and_not_followed(hf: Path, tmp_path: Path) -> None:
    moejax.convert(hf, tmp_path / "orbax")
    precious, target = tmp_path / "precious", tmp_path / "target"
    precious.write_text("mine")
    target.mkdir()
    for name in ("model.safetensors", "config.json", "manifest.json"):
        (target / name).symlink_to(precious)
    moejax.convert(tmp_path / "orbax", target, force=True)
    assert precious.read_text() == "mine" and not (target / "model.safetensors").is_symlink()


SECRET = '{"key": "hunter2"}'


def test_links_among_side_files_that_lead_out_are_not_followed(hf: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    for name in ("README.md", "LICENSE", "tokenizer.model.v3"):
        (hf / name).symlink_to(tmp_path / "secret")
    (hf / "notes").mkdir()
    (hf / "notes" / "real.txt").write_text("inside")
    (hf / "inside.txt").symlink_to("notes/real.txt")
    report = moejax.convert(hf, tmp_path / "orbax")
    assert report.changed.keys() == {str(hf / name) for name in ("README.md", "LICENSE", "tokenizer.model.v3")}
    for problem in report.changed.values():
        says(problem, tmp_path / "secret", "left out")
    assert not any("hunter2" in path.read_text() for path in (tmp_path / "orbax").iterdir() if path.is_file())
    assert (tmp_path / "orbax" / "inside.txt").read_text() == "inside"
    assert moejax.convert(hf, tmp_path / "orbax").converted == 0


def test_the_links_of_the_hugging_face_cache_are_followed(hf: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    shutil.move(hf, cache / "blobs")
    for path in (cache / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    report = moejax.convert(snapshot, tmp_path / "orbax")
    assert report.changed == {} and (tmp_path / "orbax" / "tokenizer.json").exists()
