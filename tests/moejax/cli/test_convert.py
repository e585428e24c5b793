"""`moejax convert` and scripts/convert_hf.py: flags, what they print, and exit codes."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moejax
from tests.messages import error_line, says
from tests.moejax.cli.conftest import Call
from tests.moejax.conversion_folders import config_of, tensors_in, weights_of, write_hf

ROOT = Path(__file__).resolve().parents[3]
CONFIG = config_of(num_hidden_layers=1, num_local_experts=2, tie_word_embeddings=True)
SECONDS = 300


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # the command sets it for itself; here it is taken back afterwards


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    weights = weights_of(CONFIG)
    return write_hf(tmp_path / "hf", CONFIG, weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})


def test_says_what_it_did(call: Call, hf: Path, tmp_path: Path) -> None:
    outcome = call("convert", hf, tmp_path / "target")
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'target'}: converted 6 items in ") and lines[0].endswith("MB in all")
    says(lines[1], "read back")
    says(lines[2], "lm_head.weight", "tied")
    # Of this process, with whatever ran in it before; its bound is tested in fresh ones (test_conversion_memory.py).
    assert re.fullmatch(r"peak memory [\d.]+ [MG]B, of 600 MB allowed", lines[3])
    again = call("convert", hf, tmp_path / "target", "--no-verify").out.splitlines()
    assert "already converted, 6 items" in again[0]
    says(again[1], "--no-verify")


def test_json_and_quiet(call: Call, hf: Path, tmp_path: Path) -> None:
    assert call("convert", hf, tmp_path / "target", "--quiet").out == ""
    report = json.loads(call("convert", tmp_path / "target", tmp_path / "back", "--shard-size", "20KB", "--json").out)
    assert report["target"] == str(tmp_path / "back")
    assert (report["items"], report["converted"], report["checked"], report["logits"]) == (6, 6, True, None)
    assert report["memory_bound_bytes"] == 3 * report["largest_item_bytes"] + 600_000_000
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1


def test_relative_paths(call: Call, hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("convert", "hf", "orbax").status == 0
    assert call("convert", "orbax", "back").status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "orbax", "back"}
    found = tensors_in(Path("back"))
    assert all(values.tobytes() == found[name].tobytes() for name, values in weights_of(CONFIG).items())


def test_verify_logits(call: Call, hf: Path, tmp_path: Path) -> None:
    outcome = call("convert", hf, tmp_path / "target", "--verify-logits")
    says(outcome.out, "48 positions", "bit-equal")


def test_flags_reach_the_conversion(call: Call, hf: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "notes.txt").write_text("mine")
    arguments = ("convert", hf, tmp_path / "target", "--dtype", "bf16", "--workers", "1")
    assert "holds something else" in call(*arguments).err
    assert call(*arguments, "--force").status == 0
    assert call(*arguments, "--restart", "--json").out.startswith("{")
    assert json.loads((tmp_path / "target" / "manifest.json").read_text())["options"] == {"--dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        (("--workers", "0"), ("--workers", "1", "got 0")),
        (("--shard-size", "many"), ("--shard-size", "5GB", "500MB", "got 'many'")),
        (("--shard-size", "1GB"), ("--shard-size", "Hugging Face")),
        (("--dtype", "int8"), ("--dtype", "bfloat16", "float16", "float32", "auto", "'int8'")),
        (("--verfy",), ("--verfy", "--verify")),
    ],
)
def test_mistakes(call: Call, hf: Path, tmp_path: Path, flags: tuple[str, ...], facts: tuple[str, ...]) -> None:
    outcome = call("convert", hf, tmp_path / "target", *flags)
    assert (outcome.status, outcome.out) == (2, "")
    error_line(outcome.err, *facts)
    assert not (tmp_path / "target").exists()


def test_random_weights_are_in_no_file(call: Call, tmp_path: Path) -> None:
    outcome = call("convert", "random:mixtral-8x7b", tmp_path / "target")
    assert (outcome.status, outcome.out) == (2, "")
    error_line(outcome.err, "random:mixtral-8x7b", "'demo'")
    assert not (tmp_path / "target").exists()


def test_the_script_is_the_same_command(hf: Path, tmp_path: Path) -> None:
    command = [sys.executable, "scripts/convert_hf.py", str(hf), str(tmp_path / "target")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr  # what it writes while it runs depends on how long it takes
    assert "converted 6 items" in done.stdout
    moejax.load(tmp_path / "target")
    done = subprocess.run([*command[:2], "nowhere", "x"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    says(done.stderr, "no folder nowhere")


def test_a_terminal_shows_a_bar_and_keeps_none(hf: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "moejax", "convert", str(hf), str(tmp_path / "target")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, cwd=ROOT) as process:
        os.close(follower)
        shown = b""
        try:
            while block := os.read(leader, 65536):
                shown += block
        except OSError:  # how Linux says that the other end is closed
            pass
        assert process.wait(timeout=SECONDS) == 0
    os.close(leader)
    assert b"converting" in shown and b"reading back" in shown
    assert shown.rstrip().endswith(b"\x1b[2K") or b"\x1b[2K" in shown


def test_info_of_a_converted_folder(call: Call, hf: Path, tmp_path: Path) -> None:
    call("convert", hf, tmp_path / "target")
    found = json.loads(call("info", tmp_path / "target", "--json").out)
    assert found["weights"]["bytes"] == sum(
        values.nbytes for name, values in tensors_in(hf).items() if name != "lm_head.weight"
    )
    assert found["weights"]["stored_in"] == "items"  # of Orbax, which are folders
    text = call("info", tmp_path / "target").out
    assert " in 6 items, " in text and re.search(r"^  items +\w", text, re.MULTILINE) and " files" not in text
