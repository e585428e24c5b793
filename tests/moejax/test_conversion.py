"""Conversion there and back changes no bit, whatever the model and however its tensors are spelt and stored."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import moejax
from moejax._convert import CheckpointError, OrbaxFolder
from moejax.conversion import parse_size
from tests.hf_models import build, read_back
from tests.messages import refuses, says
from tests.moejax.conversion_folders import (
    DTYPES,
    Tensors,
    assert_same_tensors,
    config_of,
    fused,
    side_bytes,
    tensors_in,
    weights_of,
    write_hf,
)

FIELDS = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(300, 350),
        "hidden_size": st.sampled_from([16, 32, 48]),
        "intermediate_size": st.integers(1, 40),
        "num_hidden_layers": st.integers(1, 2),
        "num_attention_heads": st.sampled_from([4, 8]),
        "num_key_value_heads": st.sampled_from([1, 2, 4]),
        "head_dim": st.sampled_from([4, 10]),
        "num_local_experts": st.integers(2, 5),
        "tie_word_embeddings": st.booleans(),
    }
)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=FIELDS, dtype=st.sampled_from(list(DTYPES)), files=st.integers(1, 5), shard=st.sampled_from(["20KB", "5GB"])
)
def test_round_trip_changes_no_bit(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any], dtype: str, files: int, shard: str
) -> None:
    folder = tmp_path_factory.mktemp("round_trip")
    config = config_of(**fields)
    weights = weights_of(config, dtype)
    hf = write_hf(folder / "hf", config, weights, files=files)
    moejax.convert(hf, folder / "orbax")
    report = moejax.convert(folder / "orbax", folder / "back", shard_size=shard)
    assert report.checked and not report.ignored
    assert_same_tensors(tensors_in(folder / "back"), weights)
    assert side_bytes(folder / "back") == side_bytes(folder / "orbax") == side_bytes(hf)
    largest = max(values.nbytes for values in weights.values())
    for file in (folder / "back").glob("*.safetensors"):
        assert file.stat().st_size <= max(parse_size(shard), largest) + 20_000


def mixed(weights: Tensors) -> Tensors:
    """Norms in float32 beside the others, as some checkpoints have them."""
    return {name: values.astype(np.float32) if "norm" in name else values for name, values in weights.items()}


@pytest.fixture(scope="module")
def small() -> tuple[dict[str, Any], Tensors]:
    config = config_of(num_hidden_layers=2, num_local_experts=3)
    return config, weights_of(config, "bfloat16")


def test_fused_experts_are_taken_apart(tmp_path: Path, small: tuple[dict[str, Any], Tensors]) -> None:
    config, weights = small
    for block in ("mlp", "block_sparse_moe"):
        hf = write_hf(tmp_path / block, config, fused(weights, block), files=2)
        moejax.convert(hf, tmp_path / f"{block}-orbax")
        moejax.convert(tmp_path / f"{block}-orbax", tmp_path / f"{block}-back")
        assert_same_tensors(tensors_in(tmp_path / f"{block}-back"), weights)


def test_a_fused_folder_loads_too(tmp_path: Path, small: tuple[dict[str, Any], Tensors]) -> None:
    config, weights = small
    plain = moejax.load(write_hf(tmp_path / "plain", config, weights), dtype="float32")
    joined = moejax.load(write_hf(tmp_path / "fused", config, fused(weights)), dtype="float32")
    logits = [np.asarray(moejax.logits(model, [[1, 2, 3]])[0]) for model in (plain, joined)]
    assert logits[0].tobytes() == logits[1].tobytes()


def test_one_expert_per_file_and_layers_split_over_files(tmp_path: Path, small: tuple[dict[str, Any], Tensors]) -> None:
    config, weights = small
    hf = write_hf(tmp_path / "hf", config, weights, files=len(weights))
    moejax.convert(hf, tmp_path / "orbax")
    moejax.convert(tmp_path / "orbax", tmp_path / "back")
    assert_same_tensors(tensors_in(tmp_path / "back"), weights)


def test_every_array_keeps_its_own_dtype(tmp_path: Path, small: tuple[dict[str, Any], Tensors]) -> None:
    config, weights = small
    hf = write_hf(tmp_path / "hf", config, mixed(weights))
    moejax.convert(hf, tmp_path / "orbax")
    moejax.convert(tmp_path / "orbax", tmp_path / "back")
    assert_same_tensors(tensors_in(tmp_path / "back"), mixed(weights))
    headers = safe_open(tmp_path / "back" / "model.safetensors", "np")
    assert headers.metadata() == {"format": "pt"}


def test_dtype_rounds_every_array_and_tells_config_json(tmp_path: Path, small: tuple[dict[str, Any], Tensors]) -> None:
    config, weights = small
    hf = write_hf(tmp_path / "hf", config | {"torch_dtype": "bfloat16"}, weights)
    moejax.convert(hf, tmp_path / "wide", dtype="f32")
    moejax.convert(tmp_path / "wide", tmp_path / "back", dtype="float16")
    assert_same_tensors(
        tensors_in(tmp_path / "back"),
        {name: values.astype(np.float32).astype(np.float16) for name, values in weights.items()},
    )
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["torch_dtype"] == "float32"
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "float16"


def test_any_name_of_a_folder(tmp_path: Path, small: tuple[dict[str, Any], Tensors]) -> None:
    hf = write_hf(tmp_path / "a b #1%20?é", *small)
    moejax.convert(hf, tmp_path / "c %41#?&")
    moejax.convert(tmp_path / "c %41#?&", tmp_path / "d|e")
    assert_same_tensors(tensors_in(tmp_path / "d|e"), small[1])


def test_ignored_tensors_are_listed_with_the_reason(tmp_path: Path) -> None:
    config = config_of(num_hidden_layers=1, tie_word_embeddings=True)
    weights = weights_of(config)
    extra = {
        "lm_head.weight": weights["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32),
    }
    report = moejax.convert(write_hf(tmp_path / "hf", config, weights | extra), tmp_path / "orbax")
    assert report.ignored.keys() == extra.keys()
    says(report.ignored["lm_head.weight"], "tied")
    says(report.ignored["model.layers.0.self_attn.rotary_emb.inv_freq"], "rope_theta")
    assert OrbaxFolder.open(tmp_path / "orbax").manifest.ignored == dict(report.ignored)


def test_orbax_alone_restores_every_item(tmp_path: Path, small: tuple[dict[str, Any], Tensors]) -> None:
    config, weights = small
    moejax.convert(write_hf(tmp_path / "hf", config, weights), tmp_path / "orbax")
    manifest = json.loads((tmp_path / "orbax" / "manifest.json").read_text())
    restored = {
        item.name: ocp.PyTreeCheckpointer().restore(item) for item in (tmp_path / "orbax" / "weights").iterdir()
    }
    expert = restored["layers.1.experts.2"]
    prefix = "model.layers.1.block_sparse_moe.experts.2"
    for key, matrix in {"gate": "w1", "up": "w3", "down": "w2"}.items():
        assert expert[key].tobytes() == weights[f"{prefix}.{matrix}.weight"].tobytes()
    stored = [array for item in restored.values() for array in item.values()]
    assert sum(array.nbytes for array in stored) == sum(values.nbytes for values in weights.values())
    for entry in manifest["arrays"].values():
        assert list(restored[entry["item"]][entry["key"]].shape) == entry["shape"]


def test_loads_and_decodes_as_its_source(tmp_path: Path, small: tuple[dict[str, Any], Tensors]) -> None:
    config, weights = small
    hf = write_hf(tmp_path / "hf", config, weights)
    report = moejax.convert(hf, tmp_path / "orbax", verify_logits=True)
    assert report.logits is not None and report.logits.bit_equal and report.logits.passed
    models = [moejax.load(folder, expert_backend="blocked") for folder in (hf, tmp_path / "orbax")]
    texts = [moejax.decode(model, "a list", max_tokens=8)[0].token_ids for model in models]
    assert texts[0] == texts[1]


def test_logits_after_a_change_of_dtype(tmp_path: Path, small: tuple[dict[str, Any], Tensors]) -> None:
    config, _ = small
    hf = write_hf(tmp_path / "hf", config, weights_of(config))
    logits = moejax.convert(hf, tmp_path / "orbax", dtype="float16", verify_logits=True).logits
    assert logits is not None and logits.passed and not logits.bit_equal and 0 < logits.max_abs < 1


def test_transformers_writes_the_same_from_the_exported_folder(tmp_path: Path) -> None:
    model = build("eight_queries_per_key_sharded", tmp_path / "hf")
    moejax.convert(tmp_path / "hf", tmp_path / "orbax")
    moejax.convert(tmp_path / "orbax", tmp_path / "back", shard_size="60KB")
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    exported = read_back(tmp_path / "back", torch.float32)
    prompt = torch.arange(1, 9).reshape(1, -1)
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "max_new_tokens": 24, "pad_token_id": 0}
    expected, found = (any_model.generate(prompt, **options).tolist() for any_model in (model, exported))  # type: ignore[operator]
    assert found == expected
    state, back = model.state_dict(), exported.state_dict()
    assert state.keys() == back.keys()
    assert all(torch.equal(values, back[name]) for name, values in state.items())


def test_the_demo_is_a_source(tmp_path: Path) -> None:
    report = moejax.convert("demo", tmp_path / "orbax", verify=False)
    assert (report.items, report.converted, report.checked) == (42, 42, False)
    assert report.largest_item_bytes == 2 * 2048 * 128 + 2 * 128
    assert 0 < report.peak_memory_bytes


@pytest.mark.parametrize(("text", "expected"), [("5GB", 5 * 10**9), ("1.5 kb", 1500), ("2GiB", 2**31), ("77", 77)])
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    for options, facts in [
        ({"shard_size": "5 apples"}, ("shard_size", "5GB", "got '5 apples'")),
        ({"shard_size": "0GB"}, ("shard_size", "got '0GB'")),
        ({"shard_size": "1GB"}, ("shard_size", "Hugging Face")),
        ({"workers": 0}, ("workers", "1", "got 0")),
        ({"dtype": "int8"}, ("'int8'",)),
    ]:
        with refuses(ValueError, *facts):
            moejax.convert("demo", tmp_path / "target", **options)
    assert not (tmp_path / "target").exists()


def test_source_and_target_must_be_apart(tmp_path: Path, small: tuple[dict[str, Any], Tensors]) -> None:
    hf = write_hf(tmp_path / "hf", *small)
    for target in (hf, hf / "orbax", tmp_path):
        with refuses(CheckpointError, "overlap"):
            moejax.convert(hf, target, force=True)
    assert_same_tensors(tensors_in(hf), small[1])
