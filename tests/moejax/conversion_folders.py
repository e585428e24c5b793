"""Small Hugging Face folders to convert, in every spelling, and what is in a folder, for comparison."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from moejax._convert import SafetensorsFolder
from tests.convert.checkpoint_files import write_sharded, write_single
from tests.moejax.decoding.tiny_checkpoint import BASE, random_weights
from tests.tokenizer_models import byte_level, save

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}
Tensors = dict[str, np.ndarray]


def config_of(**fields: Any) -> dict[str, Any]:
    return {**BASE, **fields}


def weights_of(config: Mapping[str, Any], dtype: str = "float32", seed: int = 0) -> Tensors:
    weights = {name: values.astype(DTYPES[dtype]) for name, values in random_weights(config, seed).items()}
    if config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)
    return weights


def write_hf(folder: Path, config: Mapping[str, Any], weights: Tensors, *, files: int = 1) -> Path:
    """A folder with a tokenizer, its tensors dealt out to `files` files."""
    folder.mkdir(parents=True, exist_ok=True)
    # Written by hand somewhere: its spacing has to survive.
    (folder / "config.json").write_text(json.dumps(dict(config), indent=3) + "\n\n")
    (folder / "generation_config.json").write_text('{"eos_token_id":  7}')
    save(folder, byte_level(), chat_template="{{ messages }}")
    if files == 1:
        return write_single(folder, weights)
    names = list(weights)
    shards = {
        f"model-{number + 1:05d}-of-{files:05d}.safetensors": {name: weights[name] for name in names[number::files]}
        for number in range(files)
    }
    return write_sharded(folder, shards)


def fused(weights: Tensors, block: str = "mlp") -> Tensors:
    """The same weights with the experts of a layer in two tensors, as transformers 5 holds them."""
    out: Tensors = {}
    experts: dict[str, dict[tuple[int, str], np.ndarray]] = {}
    for name, values in weights.items():
        layer, _, part = name.partition(".block_sparse_moe.")
        if part.startswith("experts."):
            _, expert, matrix, _ = part.split(".")
            experts.setdefault(layer, {})[int(expert), matrix] = values
        else:
            out[name.replace(".block_sparse_moe.", f".{block}.")] = values
    for layer, parts in experts.items():
        numbers = sorted({number for number, _ in parts})
        gate_up = [np.concatenate([parts[number, "w1"], parts[number, "w3"]]) for number in numbers]
        out[f"{layer}.{block}.experts.gate_up_proj"] = np.stack(gate_up)
        out[f"{layer}.{block}.experts.down_proj"] = np.stack([parts[number, "w2"] for number in numbers])
    return out


def tensors_in(folder: Path) -> Tensors:
    """All tensors of a Hugging Face folder."""
    opened = SafetensorsFolder.open(folder)
    return {name: opened.read(name, allow_nan=True) for name in opened.tensors}


def assert_same_tensors(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert found[name].tobytes() == values.tobytes(), name


def side_bytes(folder: Path) -> dict[str, bytes]:
    """The files beside the weights: configuration, tokenizer, texts."""
    weights = ("manifest.json", "model.safetensors.index.json")
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix != ".safetensors" and path.name not in weights
    }


def everything_in(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the data files of Orbax, which have random names and times in them."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if "weights" not in path.parts}
