"""What can be known about a checkpoint without reading its weights: from headers, side files and the device."""

import dataclasses
from collections import Counter
from typing import Any

from moejax._convert import SafetensorsFolder
from moejax.checkpoint import Checkpoint, open_checkpoint
from moejax.cli import startup
from moejax.families.config import ModelConfig
from moejax.families.kv_cache import cache_elements_per_token
from moejax.families.table import RANDOM, named_config, parameters_of, weights_of
from moejax.moe.split import Split, make_rules
from moejax.planning.auto import asked_split, check_split
from moejax.planning.footprint import weight_bytes
from moejax.runtime.huge_pages import why_none
from moejax.text.tokenizer import missing_tokenizer_message
from moejax.weights.weight import logical_tensors

_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def inspect(source: str, mesh: str | None, dispatch: str) -> dict[str, Any]:
    """Everything that `moejax info` knows, as JSON values. Sizes are in bytes, memory is the first device's.

    What fits is reckoned for each device of `mesh`, which need not be there; "auto" is a mesh of those that are.

    Raises:
        ValueError: when `source` is no checkpoint that moejax can load, or cannot be split over the mesh.
    """
    if source.startswith(RANDOM):
        checkpoint, config = None, named_config(source.removeprefix(RANDOM))
    else:
        checkpoint = open_checkpoint(source)
        config = checkpoint.config
    check_split(config, mesh, dispatch)
    startup.prepare_jax(quiet=True)
    split = asked_split(
        config, mesh, dispatch, dtype="bfloat16", stored="bfloat16", max_seq_len=config.max_position_embeddings
    )
    device, share = _device(), _share(config, split)
    return {
        "source": source,
        "folder": None if checkpoint is None else str(checkpoint.folder.resolve()),
        "family": config.family,
        "config": dataclasses.asdict(config),
        "parameters": {
            "total": parameters_of(config).total,
            "active": parameters_of(config).active,
            "per_expert": parameters_of(config).per_expert,
        },
        "weights": None if checkpoint is None else _weights(checkpoint),
        "tokenizer": None if checkpoint is None else _tokenizer(checkpoint),
        "eos_token_ids": [] if checkpoint is None else list(checkpoint.eos_token_ids),
        "eos_tokens": [] if checkpoint is None else _end_texts(checkpoint),
        "mesh": dict(split.mesh.shape),
        "dispatch": split.dispatch,
        "device": device,
        "fit": {dtype: _fit(share, item_bytes, device["free_bytes"]) for dtype, item_bytes in _ITEM_BYTES.items()},
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
        "remarks": list(checkpoint.remarks),
    }


def _ignored(checkpoint: Checkpoint) -> dict[str, str]:
    """Tensors that loading does not use, with the reason; also finds missing and wrongly shaped ones."""
    return dict(checkpoint.plan(logical_tensors(weights_of(checkpoint.config))).ignored)


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any]:
    tokenizer = checkpoint.tokenizer
    if tokenizer is None:
        return {"missing": missing_tokenizer_message(checkpoint.folder)}
    return {
        "vocab_size": tokenizer.vocab_size,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "adds_bos": tokenizer.adds_bos,
        "chat_template": tokenizer.chat_template is not None,
        "chat_templates": sorted(tokenizer.chat_templates),
        "remark": checkpoint.tokenizer_remark,
    }


def _end_texts(checkpoint: Checkpoint) -> list[str | None]:
    """The text of each token that ends a text, None where it has none."""
    vocabulary = {} if checkpoint.tokenizer is None else checkpoint.tokenizer.vocabulary
    return [vocabulary.get(token_id) for token_id in checkpoint.eos_token_ids]


def _device() -> dict[str, Any]:
    import jax

    from moejax._sharding import device_memory
    from moejax.ops.table import resolve_backend

    memory = device_memory()
    return {
        "name": memory.device,
        "total_bytes": memory.total_bytes,
        "free_bytes": memory.free_bytes,
        "expert_backend": resolve_backend("auto", jax.default_backend()),
        "huge_pages": _huge_pages() if jax.default_backend() == "cpu" else None,
    }


def _huge_pages() -> dict[str, Any]:
    """Whether weights in a CPU's memory can lie in huge pages, or else why not."""
    reason = why_none()
    return {"available": reason is None, "reason": reason}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Share:
    """What a device of a mesh has to hold, in elements: of the weights, and of the cache of each of its tokens.

    rows_apart: how many devices have the caches of different sequences.
    """

    weights: int
    cache_per_token: int
    rows_apart: int


def _share(config: ModelConfig, split: Split) -> _Share:
    rules = make_rules(config, split.mesh, split.dispatch)
    return _Share(
        weights=weight_bytes(config, rules, "float32") // _ITEM_BYTES["float32"],
        cache_per_token=cache_elements_per_token(config) // rules.parts("kv_heads"),
        rows_apart=rules.parts("batch"),
    )


def _fit(share: _Share, item_bytes: int, free_bytes: int) -> dict[str, Any]:
    """Bytes of a device's weights and of a token's cache there, and how many tokens of cache fit beside the weights.

    `cache_tokens` counts all devices and is None where the weights alone do not fit; the tokens may be of one sequence
    or of many, of at least one for each device that has rows of its own.
    """
    weights, per_token = share.weights * item_bytes, share.cache_per_token * item_bytes
    room = free_bytes - weights
    return {
        "weight_bytes": weights,
        "cache_bytes_per_token": per_token,
        "fits": room >= 0,
        "cache_tokens": room // per_token * share.rows_apart if room >= 0 else None,
    }
