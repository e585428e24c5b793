"""`save`: what was in memory is in the folder, for moejax and for transformers, or there is no folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MixtralForCausalLM

import moejax
from moejax import saving
from moejax._convert import CheckpointError
from tests.messages import refuses
from tests.moejax.decoding.tiny_checkpoint import Tiny, load_tiny

PROMPT = [[5, 9, 200, 7]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return load_tiny(tmp_path_factory.mktemp("saving") / "source")


@pytest.fixture(scope="module")
def changed(tiny: Tiny) -> moejax.Model:
    """On a mesh, in bfloat16, in kernels' order, with other weights than its folder."""
    assert tiny.model.folder is not None
    model = moejax.load(tiny.model.folder, mesh="expert=2,tensor=2", dtype="bfloat16")
    return model.with_params({"layers.0.moe.experts.3.gate": 2 * tiny.model.get("layers.0.moe.experts.3.gate")})


@pytest.mark.parametrize("format", ["safetensors", "orbax"])
def test_loaded_again_it_is_the_same(changed: moejax.Model, tmp_path: Path, format: Any) -> None:
    folder = moejax.save(changed, tmp_path / "saved", format=format)
    again = moejax.load(folder, mesh="expert=2,tensor=2", dtype="auto")
    assert again.dtype == "bfloat16"
    np.testing.assert_array_equal(moejax.logits(again, PROMPT)[0], moejax.logits(changed, PROMPT)[0])
    assert again.tokenizer is not None
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert (folder / "weights").is_dir() == (format == "orbax")
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_transformers_loads_it(changed: moejax.Model, tmp_path: Path) -> None:
    folder = moejax.save(changed, str(tmp_path / "saved"), shard_size="40KB", verify=False)
    assert len(list(folder.glob("*.safetensors"))) > 1
    theirs = MixtralForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(PROMPT)).logits[0].numpy()
    ours = moejax.load(folder, dtype="float32")
    np.testing.assert_allclose(moejax.logits(ours, PROMPT)[0], expected, atol=1e-3)


def test_a_model_that_has_no_folder(tiny: Tiny, tmp_path: Path) -> None:
    assert tiny.model.folder is not None
    model = moejax.load(f"random:{tiny.model.folder / 'config.json'}", dtype="float32", seed=3)
    again = moejax.load(moejax.save(model, tmp_path / "deep" / "saved"), dtype="auto")
    assert again.config == model.config and again.tokenizer is None
    np.testing.assert_array_equal(moejax.logits(again, PROMPT)[0], moejax.logits(model, PROMPT)[0])


def test_what_is_there_stays(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with refuses(ValueError, str(tmp_path / name), "new folder"):
            moejax.save(tiny.model, tmp_path / name)
    assert list((tmp_path / "mine").iterdir()) == [] and (tmp_path / "file").read_text() == "x"


def test_what_fails_leaves_nothing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "layers.1.attention.q"
    broken = tiny.model.with_params({name: np.full((32, 32), np.nan, np.float32)})
    with refuses(CheckpointError, repr(name), 1024):
        moejax.save(broken, tmp_path / "saved")
    with refuses(ValueError, "safetensors", "got 'hf'"):
        moejax.save(tiny.model, tmp_path / "saved", format="hf")  # pyright: ignore[reportArgumentType]
    with refuses(ValueError, "shard_size", "'big'"):
        moejax.save(tiny.model, tmp_path / "saved", shard_size="big")

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        moejax.save(tiny.model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["safetensors", "orbax"])
def test_no_folder_above_is_left_either(tiny: Tiny, tmp_path: Path, format: Any) -> None:
    broken = tiny.model.with_params({"layers.1.attention.q": np.full((32, 32), np.inf, np.float32)})
    (tmp_path / "mine").mkdir()
    for name in ("new/newer/saved", "mine/new/saved"):
        with refuses(CheckpointError, "layers.1.attention.q"):
            moejax.save(broken, tmp_path / name, format=format)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.parametrize(
    ("name", "fact"),
    [("/dev/null/x", "/dev/null is a file"), ("n" * 300, "long"), ("a\0b", "null"), ("~no-such/x", "home")],
)
def test_what_cannot_be_a_folder(tiny: Tiny, tmp_path: Path, name: str, fact: str) -> None:
    target = name if name.startswith(("/", "~")) else tmp_path / name
    with refuses(ValueError, fact):
        moejax.save(tiny.model, target)
    assert not any(tmp_path.iterdir())


def test_what_is_no_folder_and_no_model(tiny: Tiny, tmp_path: Path) -> None:
    for wrong in (None, 5):
        with refuses(ValueError, "folder", wrong):
            moejax.save(tiny.model, wrong)  # pyright: ignore[reportArgumentType]
    with refuses(ValueError, "moejax.load", "'demo'"):
        moejax.save("demo", tmp_path / "x")  # pyright: ignore[reportArgumentType]


def test_of_two_saves_at_once_one_is_refused(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new" / "saved"
    run = saving.run

    def meanwhile(*args: Any, **named: Any) -> Any:
        monkeypatch.undo()
        moejax.save(tiny.model, target)
        return run(*args, **named)

    monkeypatch.setattr(saving, "run", meanwhile)
    with refuses(ValueError, target, "meanwhile", "new folder"):
        moejax.save(tiny.model, target, format="orbax")
    assert (target / "model.safetensors").exists() and not (target / "weights").exists()
    assert list(target.parent.iterdir()) == [target]


def test_its_own_folder_is_gone(tmp_path: Path) -> None:
    model = load_tiny(tmp_path / "one").model
    (tmp_path / "one").rename(tmp_path / "two")
    with refuses(ValueError, str(tmp_path / "one")):
        moejax.save(model, tmp_path / "saved")
