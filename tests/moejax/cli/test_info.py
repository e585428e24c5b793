"""`moejax info` says what is in a checkpoint, and does not read its weights."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moejax import _sharding as sharding
from moejax._sharding import DeviceMemory
from moejax.checkpoint import open_checkpoint
from moejax.cli import console, inspection
from moejax.cli.amounts import count, size
from moejax.families.table import named_configs, parameters_of
from tests.messages import says
from tests.moejax.cli.conftest import Call
from tests.moejax.decoding.tiny_checkpoint import Tiny

GB = 10**9


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> DeviceMemory:
    """A device with 120 GB, of which 100 are free."""
    device = DeviceMemory(device="test device", total_bytes=120 * GB, free_bytes=100 * GB)
    monkeypatch.setattr(sharding, "device_memory", lambda: device)
    return device


def found(call: Call, source: str | Path, *flags: str) -> dict[str, Any]:
    outcome = call("info", source, "--json", *flags)
    assert (outcome.status, outcome.err) == (0, "")
    return json.loads(outcome.out)


def test_json_describes_the_demo_checkpoint(call: Call) -> None:
    report = found(call, "demo")
    opened = open_checkpoint("demo")
    bytes_of_weights = opened.tensors.total_bytes
    assert report["folder"] == str(opened.folder)
    assert report["config"]["num_experts"] == opened.config.num_experts
    assert report["parameters"]["total"] * 2 == bytes_of_weights
    assert report["weights"] == {
        "bytes": bytes_of_weights,
        "tensors": len(opened.tensors.tensors),
        "dtype": "bfloat16",
        "bytes_by_dtype": {"BF16": bytes_of_weights},
        "stored_in": "files",
        "bytes_by_file": {"model.safetensors": bytes_of_weights},
        "ignored": {},
        "remarks": [],
    }
    assert report["tokenizer"]["vocab_size"] == opened.config.vocab_size
    assert report["eos_token_ids"] == list(opened.eos_token_ids)
    assert report["fit"]["bfloat16"]["fits"]


@pytest.mark.parametrize("reason", [None, "transparent_hugepage/enabled is never"])
def test_huge_pages_of_a_cpu(call: Call, monkeypatch: pytest.MonkeyPatch, reason: str | None) -> None:
    monkeypatch.setattr(inspection, "why_none", lambda: reason)
    assert found(call, "demo")["device"]["huge_pages"] == {"available": reason is None, "reason": reason}
    (line,) = (line for line in call("info", "demo").out.splitlines() if line.startswith("  huge pages  "))
    says(line, "yes" if reason is None else reason)
    assert len(line) <= 80


def test_an_accelerator_has_no_huge_pages_to_speak_of(
    call: Call, memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert found(call, "demo")["device"]["huge_pages"] is None
    assert "huge pages" not in call("info", "demo").out


def test_what_fits_follows_from_the_devices_memory(call: Call, memory: DeviceMemory) -> None:
    fit = found(call, "random:mixtral-8x7b")["fit"]
    weights = parameters_of(named_configs()["mixtral-8x7b"]).total * 2
    assert fit["bfloat16"] == {
        "weight_bytes": weights,
        "cache_bytes_per_token": 128 * 1024,  # 2 x 32 layers x 8 heads x 128 x 2 bytes
        "fits": True,
        "cache_tokens": (100 * GB - weights) // (128 * 1024),
    }
    assert (fit["float32"]["fits"], fit["float32"]["cache_tokens"]) == (False, None)


@pytest.mark.parametrize(
    ("dispatch", "weights", "cache", "apart"),
    # Attention, embedding and head are 1.6 B of the 46.7 B parameters: `gather` has them whole along `expert`.
    [("replicated", 11.68, 128 * 1024 // 8, 1), ("gather", 12.88, 128 * 1024 // 2, 4)],
)
def test_what_fits_each_device_of_a_mesh(
    call: Call, memory: DeviceMemory, dispatch: str, weights: float, cache: int, apart: int
) -> None:
    """The mesh need not be there. `gather` gives devices along `expert` rows of their own."""
    report = found(call, "random:mixtral-8x7b", "--mesh", "expert=4,tensor=2", "--dispatch", dispatch)
    assert (report["mesh"], report["dispatch"]) == ({"data": 1, "expert": 4, "tensor": 2}, dispatch)
    fit = report["fit"]["bfloat16"]
    assert fit["weight_bytes"] / GB == pytest.approx(weights, abs=0.005)
    assert fit["cache_bytes_per_token"] == cache
    assert fit["cache_tokens"] == (100 * GB - fit["weight_bytes"]) // cache * apart
    table = call("info", "random:mixtral-8x7b", "--mesh", "expert=4,tensor=2", "--dispatch", dispatch).out
    says(" ".join(table.split()), "8", f"data=1,expert=4,tensor=2, {dispatch}", "test device")


def test_the_mesh_of_the_devices_that_are_here(call: Call) -> None:
    report = found(call, "demo", "--mesh", "auto")
    assert math.prod(report["mesh"].values()) == jax.device_count() == 8


def test_a_mesh_over_which_it_cannot_be_split(call: Call) -> None:
    outcome = call("info", "random:mixtral-8x7b", "--mesh", "expert=9")
    assert outcome.status == 2 and "expert = 9" in outcome.err and "expert=8" in outcome.err


def test_tables_show_every_dimension_and_what_fits(call: Call, memory: DeviceMemory) -> None:
    lines = call("info", "random:mixtral-8x7b").out.splitlines()
    assert lines[0] == "random:mixtral-8x7b"
    says(lines[1], "Mixtral", "46.7 B", "12.9 B")
    dimensions = {line.split()[0]: line.split()[-1] for line in lines[3:12]}
    assert dimensions == {
        "V": "32,000",
        "D": "4,096",
        "L": "32",
        "N": "32",
        "K": "8",
        "H": "128",
        "E": "8",
        "A": "2",
        "F": "14,336",
    }
    assert "  attention   full" in lines
    says("\n".join(lines), "test device, 100 GB", "120 GB")
    assert lines[-3].split()[:4] == ["bfloat16", "93.4", "GB", "yes"]
    assert lines[-1].split()[:6] == ["float32", "187", "GB", "no,", "86.8", "GB"]


def test_ignored_tensors_and_features_are_named(call: Call, tiny: Tiny, tiny_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write(tmp_path, {**tiny.config, "tie_word_embeddings": True, "sliding_window": 77}, tensors)
    report = found(call, tmp_path)
    ignored = report["weights"]["ignored"]
    assert len(ignored) == 2
    says(ignored["model.layers.0.self_attn.rotary_emb.inv_freq"], "rope_theta")
    says(ignored["lm_head.weight"], "tied")
    says(report["tokenizer"]["missing"], tmp_path, "tokenizer.json")
    text = call("info", tmp_path).out
    says(text, "77 tokens")
    says(text, "lm_head.weight", "tied")


@pytest.mark.parametrize("source", ["demo", "random:mixtral-8x7b", "random:mixtral-8x22b"])
def test_tables_fit_80_columns(call: Call, memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    wide = call("info", source).out.splitlines()
    monkeypatch.setattr(console, "PIPED_WIDTH", 80)
    narrow = call("info", source).out.splitlines()
    assert narrow[1:] == wide[1:]  # nothing was wrapped; the first line holds a path
    assert max(map(len, narrow[1:])) <= 80


def test_what_there_is_only_one_of_is_said_once(call: Call, tiny: Tiny, tiny_folder: Path, tmp_path: Path) -> None:
    lines = call("info", "demo").out.splitlines()
    (weights,) = (line for line in lines if line.startswith("  weights  "))
    says(weights, "7.74 MB", "model.safetensors", "127 tensors", "BF16")
    assert not [line for line in lines if line.startswith(("  files", "  ignored"))]
    tensors = load_file(tiny_folder / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(dict(tiny.config)))
    halves = {"a.safetensors": dict(list(tensors.items())[::2]), "b.safetensors": dict(list(tensors.items())[1::2])}
    for name, half in halves.items():
        save_file(half, tmp_path / name)
    weight_map = {tensor: name for name, half in halves.items() for tensor in half}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    text = call("info", tmp_path).out
    says(text, "2 files", len(tensors), "F32")
    assert re.search(r"^  files +a\.safetensors [\d.]+ kB, b\.safetensors [\d.]+ kB$", text, re.MULTILINE)


def test_weights_are_not_read(call: Call, tiny: Tiny, tiny_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_folder / "model.safetensors")
    write(tmp_path, tiny.config, {name: np.full_like(array, np.nan) for name, array in tensors.items()})
    assert call("info", tmp_path).status == 0
    assert "NaN" in call("decode", tmp_path, "--token-ids", "1").err


def test_missing_tensor_is_an_error(call: Call, tiny: Tiny, tiny_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_folder / "model.safetensors")
    del tensors["model.norm.weight"]
    write(tmp_path, tiny.config, tensors)
    outcome = call("info", tmp_path)
    assert outcome.status == 2
    assert "model.norm.weight" in outcome.err


def write(folder: Path, config: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> None:
    (folder / "config.json").write_text(json.dumps(dict(config)))
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("number", "text"),
    [(46_702_792_704, "46.7 B"), (3_871_872, "3.87 M"), (140_630_000_000, "141 B"), (98_304, "98,304"), (0, "0")],
)
def test_counts_have_three_digits(number: int, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("nbytes", "text"), [(93_405_585_408, "93.4 GB"), (131_072, "131 kB"), (999, "999 bytes"), (2 * 10**12, "2 TB")]
)
def test_sizes_are_powers_of_ten(nbytes: int, text: str) -> None:
    assert size(nbytes) == text
