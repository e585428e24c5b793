"""Hugging Face's config.json: the file, and what its keys have in common over all families. Imports no JAX."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moejax._convert import CheckpointError
from moejax._convert.errors import shown
from moejax._convert.files import opened, read_json

_LIMIT = 4_000_000  # bytes; the largest that are known have 100,000, of the names of labels
_MOST_SHOWN = 20  # unknown keys


def read_config_json(path: Path) -> dict[str, Any]:
    """The object in a config.json.

    Raises:
        CheckpointError: when the file is missing, too large, or does not hold a JSON object.
    """
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path}: is a link to {path.readlink()}, where there is no file; download it again")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; a checkpoint folder holds a config.json")
    with opened(path) as stream:
        if (size := os.fstat(stream.fileno()).st_size) > _LIMIT:
            raise CheckpointError(f"{path} has {size} bytes, at most {_LIMIT} are read: it is no configuration")
        return read_json(path, stream)


# Keys of config.json that do not change what the model computes when it decodes: what transformers 4 and 5 write for
# any configuration (PretrainedConfig), what their `generate` takes, which older versions wrote here, and what is for
# training or a pointer. Last what other tools leave there.
_HARMLESS_KEYS = frozenset(
    """add_cross_attention architectures attn_implementation auto_map bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id dtype eos_token_id finetuning_task gradient_checkpointing
    id2label is_decoder is_encoder_decoder label2id model_type name_or_path num_labels output_attentions
    output_hidden_states pad_token_id prefix problem_type return_dict sep_token_id task_specific_params tf_legacy_loss
    tie_encoder_decoder tie_last_hidden_states tokenizer_class torch_dtype torchscript transformers_version
    unk_token_id use_bfloat16 use_cache

    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length max_new_tokens min_length min_new_tokens min_p no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_scores penalty_alpha remove_invalid_values
    renormalize_logits repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p

    attention_dropout initializer_range output_router_logits pretraining_tp router_aux_loss_coef
    router_jitter_noise

    transformers.js_config unsloth_fixed""".split()
)


def quantisation(raw: Mapping[str, Any]) -> str | None:
    """How a config.json of transformers or MLX says that the weights are quantised; None where it does not."""
    for key in ("quantization_config", "quantization"):
        if said := raw.get(key):
            fields = said if isinstance(said, dict) else {}
            method = fields.get("quant_method", "MLX" if key == "quantization" and fields else said)
            bits = f", {shown(fields['bits'])} bits" if "bits" in fields and method is not said else ""
            method = method if isinstance(method, str) else shown(method)
            return f"the weights are quantised: {key} ({method}{bits}), of which moejax reads none"
    return None


def refuse_unknown(raw: Mapping[str, Any]) -> None:
    """Refuses keys that are left when a family has taken its own, unless they are unset or change no number.

    Raises:
        ValueError: naming them all.
    """
    unknown = [f"{key}={shown(value)}" for key, value in raw.items() if value and not _is_harmless(key)]
    if unknown:
        more = f" and {len(unknown) - _MOST_SHOWN} more" if len(unknown) > _MOST_SHOWN else ""
        raise ValueError(
            f"{', '.join(unknown[:_MOST_SHOWN])}{more}: moejax does not know "
            f"{'this key' if len(unknown) == 1 else 'these keys'}, so the numbers may be others; remove what does not "
            "change them"
        )


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
