"""The head beside tie_word_embeddings: compared, and used where it is one of its own; and other derived tensors."""

import logging
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import moejax
from moejax.checkpoint import open_checkpoint
from moejax.cli.app import run
from tests.convert.checkpoint_files import write_single
from tests.hf_models import build, read_back
from tests.messages import says
from tests.moejax.conversion_folders import Tensors, config_of, tensors_in, weights_of, write_hf

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PROMPT = [1, 2, 3, 4, 5]
CONFIG = config_of(num_hidden_layers=1, num_local_experts=2, tie_word_embeddings=True)
WEIGHTS = weights_of(CONFIG)
OTHER = np.random.default_rng(1).standard_normal(WEIGHTS[EMBED].shape).astype(np.float32)


def logits(folder: Path, **options: Any) -> np.ndarray:
    return np.asarray(moejax.logits(moejax.load(folder, dtype="float32", **options), [PROMPT])[0])


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "hf", CONFIG, WEIGHTS | {HEAD: OTHER})


def test_another_head_is_used_as_transformers_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hf = tmp_path / "hf"
    build("tied_head_dim", hf)
    tensors = tensors_in(hf)
    head = np.random.default_rng(1).standard_normal(tensors[EMBED].shape).astype(np.float32)
    for path in hf.glob("*.safetensors"):
        path.unlink()
    write_single(hf, tensors | {HEAD: head})
    with torch.no_grad():
        wanted = read_back(hf, torch.float32)(torch.tensor([PROMPT])).logits[0].numpy()
    with caplog.at_level(logging.WARNING):
        assert np.abs(logits(hf) - wanted).max() < 1e-4 * wanted.std()
    says(caplog.text, hf, "tie_word_embeddings", f"'{HEAD}'", f"'{EMBED}'")


def test_it_is_used_everywhere(untied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a conversion, back from it, and on every mesh: the logits are those of the same model that says so."""
    said = write_hf(tmp_path / "said", CONFIG | {"tie_word_embeddings": False}, WEIGHTS | {HEAD: OTHER})
    wanted = logits(said)
    report = moejax.convert(untied, tmp_path / "orbax")
    assert report.ignored == {} and len(report.remarks) == 1
    assert moejax.convert(tmp_path / "orbax", tmp_path / "back").remarks
    assert tensors_in(tmp_path / "back")[HEAD].tobytes() == OTHER.tobytes()
    for folder in (untied, tmp_path / "orbax", tmp_path / "back"):
        assert logits(folder).tobytes() == wanted.tobytes()
        assert not open_checkpoint(folder).config.tie_embeddings
    for mesh in ("tensor=2", "expert=2", "data=2,expert=2"):
        assert np.abs(logits(untied, mesh=mesh) - wanted).max() < 1e-4
    assert run(["verify", str(tmp_path / "orbax"), "--mesh", "tensor=2", "--quiet"]) == 0
    assert run(["info", str(untied), "--json"]) == 0
    assert HEAD in capsys.readouterr().out


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "float16")])
def test_an_equal_head_is_quiet(tmp_path: Path, dtypes: tuple[str, str]) -> None:
    """Also where one is stored wider."""
    rounded = WEIGHTS[EMBED].astype(ml_dtypes.bfloat16).astype(np.float16).astype(ml_dtypes.bfloat16)
    table, head = (rounded.astype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name in dtypes)
    opened = open_checkpoint(write_hf(tmp_path, CONFIG, WEIGHTS | {EMBED: table, HEAD: head}))
    assert opened.config.tie_embeddings and opened.remarks == ()


@pytest.mark.parametrize("place", [0, -1])
def test_one_other_number_is_another_head(tmp_path: Path, place: int) -> None:
    head = WEIGHTS[EMBED].copy()
    head.reshape(-1)[place] += 1
    assert not open_checkpoint(write_hf(tmp_path, CONFIG, WEIGHTS | {HEAD: head})).config.tie_embeddings


def test_a_head_of_another_shape_is_told(tmp_path: Path) -> None:
    with pytest.raises(moejax.CheckpointError) as caught:
        moejax.load(write_hf(tmp_path, CONFIG, WEIGHTS | {HEAD: OTHER[:-1]}))
    says(str(caught.value), HEAD, "299", "300")


def test_where_only_the_head_is_there_it_is_the_embedding_too(tmp_path: Path) -> None:
    tied = write_hf(tmp_path / "tied", CONFIG, WEIGHTS)
    swapped = {(HEAD if name == EMBED else name): values for name, values in WEIGHTS.items()}
    folder = write_hf(tmp_path / "swapped", CONFIG, swapped)
    assert logits(folder).tobytes() == logits(tied).tobytes()
    moejax.convert(folder, tmp_path / "orbax")
    assert logits(tmp_path / "orbax").tobytes() == logits(tied).tobytes()


# --- rotary tables ---

HEAD_DIM, THETA = 8, 1e4


def rotary(dtype: Any = np.float32) -> Tensors:
    frequencies = THETA ** (-np.arange(0, HEAD_DIM, 2, dtype=np.float32) / HEAD_DIM)
    angles = np.outer(np.arange(64, dtype=np.float32), frequencies)
    both = np.concatenate([angles, angles], -1)
    made = {"inv_freq": frequencies, "cos_cached": np.cos(both), "sin_cached": np.sin(both)[None, None]}
    return {
        f"{prefix}rotary_emb.{name}": values.astype(dtype)
        for prefix in ("model.", "model.layers.0.self_attn.")
        for name, values in made.items()
    } | {"model.rotary_emb.original_inv_freq": frequencies.astype(dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
def test_rotary_tables_are_compared_and_not_read(tmp_path: Path, dtype: Any) -> None:
    config = CONFIG | {"rope_theta": THETA, "tie_word_embeddings": False, "head_dim": HEAD_DIM}
    folder = write_hf(tmp_path, config, weights_of(config) | rotary(dtype))
    opened = open_checkpoint(folder)
    assert opened.remarks == ()
    assert moejax.load(folder).ignored.keys() == rotary().keys()
    report = moejax.convert(folder, tmp_path.with_name(f"{tmp_path.name}-orbax"))
    assert report.ignored.keys() == rotary().keys() and report.remarks == ()


@pytest.mark.parametrize("name", rotary())
def test_a_rotary_table_of_another_base_is_remarked(tmp_path: Path, name: str) -> None:
    config = CONFIG | {"rope_theta": THETA, "tie_word_embeddings": False, "head_dim": HEAD_DIM}
    tables = rotary()
    tables[name] = tables[name] * np.float32(1.25)
    folder = write_hf(tmp_path, config, weights_of(config) | tables)
    (remark,) = open_checkpoint(folder).remarks
    says(remark, f"'{name}'", "rope_theta")
    ignored = moejax.load(folder).ignored
    assert {one for one, reason in ignored.items() if "derived" not in reason} == {name}
