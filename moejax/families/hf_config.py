"""Hugging Face's config.json: the file, and what its keys have in common over all families. Imports no JAX."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_config_json(path: Path) -> dict[str, Any]:
    """The object in a config.json.

    Raises:
        ValueError: when the file is missing or does not hold a JSON object.
    """
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path}: is a link to {path.readlink()}, where there is no file; download it again")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; a checkpoint folder holds a config.json")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); download the file again") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(raw).__name__}")
    return raw


# Keys of config.json that do not change what the model computes when it decodes.
_HARMLESS_KEYS = frozenset(
    """architectures attention_dropout auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id id2label
    initializer_range is_encoder_decoder label2id model_type output_attentions output_hidden_states
    output_router_logits pad_token_id pretraining_tp problem_type return_dict router_aux_loss_coef
    router_jitter_noise torch_dtype transformers_version unk_token_id use_cache""".split()
)


def refuse_unknown(raw: Mapping[str, Any]) -> None:
    """Refuses keys that are left when a family has taken its own, unless they are unset or change no number.

    Raises:
        ValueError: naming the first one.
    """
    unknown = [key for key, value in raw.items() if value and not _is_harmless(key)]
    if unknown:
        raise ValueError(
            f"{unknown[0]}={raw[unknown[0]]!r} is not a key moejax knows, so it may change the numbers; "
            "remove it if it does not"
        )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _is_harmless(key: str) -> bool:
    return key in _HARMLESS_KEYS or key.startswith("_") or key.endswith("_version")


def take_rope_theta(raw: dict[str, Any]) -> float:
    """Takes the rotary base out of either spelling; refuses every scaling of it."""
    parameters = raw.pop("rope_parameters", None) or {}
    scaling = raw.pop("rope_scaling", None) or {}
    for key, value in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        if not isinstance(value, dict):
            raise ValueError(f"{key} must be an object, got {value!r}")
        kind = value.get("rope_type", value.get("type", "default"))
        rest = sorted(set(value) - {"rope_theta", "rope_type", "type"})
        if kind != "default" or rest:
            what = f"rope type {kind!r}" if kind != "default" else f"{rest[0]}={value[rest[0]]!r}"
            raise ValueError(f"{key} asks for {what}, which is not supported; moejax has 'default' rope")
    theta = raw.pop("rope_theta", None)
    given = [value for value in (theta, parameters.get("rope_theta")) if value is not None]
    if len(given) == 2 and given[0] != given[1]:
        raise ValueError(f"rope_theta is {given[0]!r} and also {given[1]!r} in rope_parameters; keep one")
    return given[0] if given else 1e6
