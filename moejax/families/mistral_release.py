"""Mistral's own layout of Mixtral: params.json and consolidated.safetensors, as mistral-inference reads them.

https://github.com/mistralai/mistral-inference (args.py, transformer.py, rope.py). It turns neighbouring rows of a head
as pairs, where transformers turns row i with row i + H/2; so rows of queries and keys are put in another order. No JAX.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moejax._convert import Renamed
from moejax._convert.errors import shown
from moejax.families.config import ModelConfig, config_problem
from moejax.weights.weight import EXPERT

PARAMS, STEM = "params.json", "consolidated"
_REQUIRED: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "embed_dim": "dim",
    "expert_dim": "hidden_dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "num_kv_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "norm_eps": "norm_eps",
}
_OF_MOE: Mapping[str, str] = {"num_experts": "num_experts", "experts_per_token": "num_experts_per_tok"}
# params.json most often says nothing of positions; transformers' and llama.cpp's converters take these for Mixtral.
_POSITIONS = 32768
_HARMLESS = {"max_batch_size", "dtype", "use_cache", "causal"}

_LAYER, _HF = "layers.{layer}", "model.layers.{layer}"
_EXPERTS, _HF_EXPERTS = f"{_LAYER}.feed_forward.experts.{EXPERT}", f"{_HF}.block_sparse_moe.experts.{EXPERT}"
RENAMED = (
    Renamed(pattern="tok_embeddings.weight", name="model.embed_tokens.weight"),
    Renamed(pattern="norm.weight", name="model.norm.weight"),
    Renamed(pattern="output.weight", name="lm_head.weight"),
    Renamed(pattern=f"{_LAYER}.attention_norm.weight", name=f"{_HF}.input_layernorm.weight"),
    Renamed(pattern=f"{_LAYER}.ffn_norm.weight", name=f"{_HF}.post_attention_layernorm.weight"),
    *(
        Renamed(pattern=f"{_LAYER}.attention.w{x}.weight", name=f"{_HF}.self_attn.{x}_proj.weight", paired=x in "qk")
        for x in "qkvo"
    ),
    Renamed(pattern=f"{_LAYER}.feed_forward.gate.weight", name=f"{_HF}.block_sparse_moe.gate.weight"),
    *(Renamed(pattern=f"{_EXPERTS}.{w}.weight", name=f"{_HF_EXPERTS}.{w}.weight") for w in ("w1", "w2", "w3")),
)


def is_release(folder: Path) -> bool:
    """Whether a folder holds a model in this layout, and not in transformers' as well."""

    def has(stem: str) -> bool:
        return any(os.path.lexists(folder / f"{stem}.safetensors{end}") for end in ("", ".index.json"))

    return os.path.lexists(folder / PARAMS) and has(STEM) and not has("model")


def params_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a params.json.

    Raises:
        ValueError: for a missing or impossible size, and, by name, any feature that is not implemented.
    """
    raw = dict(raw)
    moe = raw.pop("moe", None)
    if not isinstance(moe, dict):
        raise ValueError(f"moe is {shown(moe)}: moejax decodes models with experts, Mixtral's, only")
    if missing := [key for key in _REQUIRED.values() if raw.get(key) is None]:
        raise ValueError(f"missing {', '.join(missing)}")
    if missing := [key for key in _OF_MOE.values() if moe.get(key) is None]:
        raise ValueError(f"missing {', '.join(missing)} of moe")
    if (kind := raw.pop("model_type", "transformer")) != "transformer":
        raise ValueError(f"model_type is {shown(kind)}, expected 'transformer'")
    window = raw.pop("sliding_window", None)
    longest = [raw.pop(key, None) for key in ("max_position_embeddings", "max_seq_len")]
    tied = raw.pop("tied_embeddings", None)
    fields = {
        **{field: raw.pop(key) for field, key in _REQUIRED.items()},
        **{field: moe.pop(key) for field, key in _OF_MOE.items()},
        "rope_theta": 1e6 if (theta := raw.pop("rope_theta", None)) is None else theta,
        "max_position_embeddings": next((one for one in longest if one is not None), _POSITIONS),
        "sliding_window": int(window) if isinstance(window, str) and window.isdecimal() else window,
        "tie_embeddings": False if tied is None else tied,
    }
    names = {field: field for field in fields} | {**_REQUIRED, **_OF_MOE, "tie_embeddings": "tied_embeddings"}
    if problem := config_problem(fields, names):
        raise ValueError(problem)
    others = {key: value for key, value in raw.items() if key not in _HARMLESS}
    unknown = [*others.items(), *((f"moe.{key}", value) for key, value in moe.items())]
    if unknown := [f"{key}={shown(value)}" for key, value in unknown if value]:
        raise ValueError(f"{', '.join(unknown[:20])}: not supported, or not known to moejax")
    return ModelConfig(family="mixtral", **fields)
