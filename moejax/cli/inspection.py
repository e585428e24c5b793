"""What can be known about a checkpoint without reading its weights: from headers, side files and the device."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from convert import SafetensorsFolder
from moejax.checkpoint import Checkpoint, open_checkpoint
from moejax.cli import startup
from moejax.cli.options import RANDOM
from moejax.config import ModelConfig, named_config
from moejax.tokenizer import Tokenizer, missing_tokenizer_message

_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def inspect(source: str) -> dict[str, Any]:
    """Everything that `moejax info` knows, as JSON values. Sizes are in bytes, memory is the first device's.

    Raises:
        ValueError: when `source` is no checkpoint that moejax can load.
    """
    if source.startswith(RANDOM):
        checkpoint, config = None, named_config(source.removeprefix(RANDOM))
    else:
        checkpoint = open_checkpoint(source)
        config = checkpoint.config
    startup.prepare_jax(quiet=True)
    return {
        "source": source,
        "folder": None if checkpoint is None else str(checkpoint.folder.resolve()),
        "family": "mixtral",
        "config": dataclasses.asdict(config),
        "parameters": {
            "total": config.num_parameters,
            "active": config.num_active_parameters,
            "per_expert": config.num_expert_parameters,
        },
        "weights": None if checkpoint is None else _weights(checkpoint),
        "tokenizer": None if checkpoint is None else _tokenizer(checkpoint.folder),
        "eos_token_ids": [] if checkpoint is None else list(checkpoint.eos_token_ids),
        "device": (device := _device()),
        "fit": {dtype: _fit(config, item_bytes, device["free_bytes"]) for dtype, item_bytes in _ITEM_BYTES.items()},
    }


def _weights(checkpoint: Checkpoint) -> dict[str, Any]:
    by_file, by_dtype = Counter[str](), Counter[str]()
    for tensor in checkpoint.tensors.tensors.values():
        by_file[tensor.file.name] += tensor.nbytes
        by_dtype[tensor.dtype] += tensor.nbytes
    return {
        "bytes": checkpoint.tensors.total_bytes,
        "tensors": len(checkpoint.tensors.tensors),
        "dtype": checkpoint.dtype,
        "bytes_by_dtype": dict(by_dtype),
        "stored_in": "files" if isinstance(checkpoint.tensors, SafetensorsFolder) else "items",
        "bytes_by_file": dict(by_file),
        "ignored": _ignored(checkpoint),
    }


def _ignored(checkpoint: Checkpoint) -> dict[str, str]:
    """Tensors that loading does not use, with the reason; also finds missing and wrongly shaped ones."""
    from moejax.loading import expected_tensors

    return dict(checkpoint.plan(expected_tensors(checkpoint.config)).ignored)


def _tokenizer(folder: Path) -> dict[str, Any]:
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer is None:
        return {"missing": missing_tokenizer_message(folder)}
    return {
        "vocab_size": tokenizer.vocab_size,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "adds_bos": tokenizer.adds_bos,
        "chat_template": tokenizer.chat_template is not None,
    }


def _device() -> dict[str, Any]:
    import jax

    from moejax.moe import resolve_backend
    from sharding import device_memory

    memory = device_memory()
    return {
        "name": memory.device,
        "total_bytes": memory.total_bytes,
        "free_bytes": memory.free_bytes,
        "expert_backend": resolve_backend("auto", jax.default_backend()),
    }


def _fit(config: ModelConfig, item_bytes: int, free_bytes: int) -> dict[str, Any]:
    """Bytes of the weights and of one token's cache, and how many tokens of cache fit beside the weights.

    `cache_tokens` is None where the weights alone do not fit; the tokens may be of one sequence or of many.
    """
    weights, per_token = config.num_parameters * item_bytes, config.cache_elements_per_token * item_bytes
    room = free_bytes - weights
    return {
        "weight_bytes": weights,
        "cache_bytes_per_token": per_token,
        "fits": room >= 0,
        "cache_tokens": room // per_token if room >= 0 else None,
    }
