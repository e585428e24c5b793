"""Files beside the weights that somebody has edited in a converted folder: carried, and told by name."""

import json
from pathlib import Path

import pytest

import moejax
from moejax.cli.app import run
from tests.messages import says
from tests.moejax.conversion_folders import config_of, weights_of, write_hf

CONFIG = config_of(num_hidden_layers=1, num_local_experts=2)


def test_edited_files_are_carried_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # the command sets it for itself; here it is taken back afterwards
    hf, orbax, back = (tmp_path / name for name in ("hf", "orbax", "back"))
    write_hf(hf, CONFIG, weights_of(CONFIG))
    assert moejax.convert(hf, orbax).changed == {}
    edited = (orbax / "tokenizer.json").read_text() + " "
    (orbax / "tokenizer.json").write_text(edited)
    (orbax / "generation_config.json").unlink()
    (orbax / "README.md").write_text("of my own")  # nobody converted it
    report = moejax.convert(orbax, back)
    assert report.changed.keys() == {str(orbax / name) for name in ("tokenizer.json", "generation_config.json")}
    says(report.changed[str(orbax / "tokenizer.json")], "changed", "carried")
    says(report.changed[str(orbax / "generation_config.json")], "removed")
    assert (back / "tokenizer.json").read_text() == edited and (back / "README.md").exists()
    assert not (back / "generation_config.json").exists()

    (back / "config.json").write_text((back / "config.json").read_text() + "\n")
    assert run(["convert", str(orbax), str(back), "--json"]) == 0
    printed = capsys.readouterr()
    says(printed.err.splitlines()[-1], back / "config.json", "changed")
    assert len(printed.err.splitlines()) == len(json.loads(printed.out)["changed"]) == 3
    assert run(["convert", str(orbax), str(back), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_manifest_leads_to_no_file_elsewhere(tmp_path: Path) -> None:
    """Its names are only compared with what is in the folder."""
    write_hf(tmp_path / "hf", CONFIG, weights_of(CONFIG))
    moejax.convert(tmp_path / "hf", tmp_path / "orbax")
    manifest = json.loads((tmp_path / "orbax" / "manifest.json").read_text())
    manifest["files"] |= {"../hf/config.json": "0", "/dev/zero": "0"}
    (tmp_path / "orbax" / "manifest.json").write_text(json.dumps(manifest))
    found = moejax.convert(tmp_path / "orbax", tmp_path / "back").changed
    assert len(found) == 2
    for what in found.values():
        says(what, "removed")


def test_a_large_file_beside_a_conversion_is_left_alone(tmp_path: Path) -> None:
    """It would be too large to go along from a source; in a target nobody asks."""
    hf, target = tmp_path / "hf", tmp_path / "orbax"
    write_hf(hf, CONFIG, weights_of(CONFIG))
    target.mkdir()
    with open(target / "notes.txt", "wb") as notes:
        notes.truncate(200_000_000)  # of holes: it takes no room
    assert moejax.convert(hf, target, force=True).changed == {}
    assert (target / "notes.txt").stat().st_size == 200_000_000
