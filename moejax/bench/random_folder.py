"""A Hugging Face folder of random weights, so that every system compared reads the same ones. Imports no JAX."""

import json
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from moejax.families.config import ModelConfig
from moejax.families.table import family_of, weights_of
from moejax.weights.weight import Normal, Ones, Weight

STD = 0.02  # transformers' initializer_range
_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


def write_random_folder(folder: Path, config: ModelConfig, dtype: str, seed: int = 0) -> None:
    """Writes config.json and safetensors, a file per layer; the same bytes for the same arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(family_of(config).hf_config(config, dtype), indent=2), encoding="utf-8"
    )
    rng = np.random.default_rng(seed)
    weight_map: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(_files(config, np.dtype(_DTYPES[dtype]), rng)):
        name = f"model-{number + 1:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _files(config: ModelConfig, dtype: np.dtype, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """The tensors of each file: one per layer, and one for the rest."""
    by_layer: dict[str, dict[str, np.ndarray]] = {}
    for weight in weights_of(config):
        for tensor in weight.tensors():
            file = weight.path.split(".")[1] if weight.path.startswith("layers.") else ""
            by_layer.setdefault(file, {})[tensor.names[0]] = _numbers(weight, dtype, rng)
    yield from (by_layer[file] for file in sorted(by_layer, key=lambda file: (file == "", file.zfill(8))))


def _numbers(weight: Weight, dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    """Normal numbers of transformers' deviation; norms and biases as they are initialised."""
    if isinstance(weight.init, Normal):
        return (STD * rng.standard_normal(weight.shape, np.float32)).astype(dtype)
    return np.full(weight.shape, 1 if isinstance(weight.init, Ones) else 0, dtype)
