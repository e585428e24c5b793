"""Tiny random Mixtrals in Hugging Face format, made with transformers, for tests that compare with it live.

What builds, saves and scores a model is shared with scripts/make_golden.py; here is which models there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import MixtralForCausalLM

from scripts.make_golden import Spelling, config_from, random_mixtral, save_folder


@dataclass(frozen=True, kw_only=True)
class HfModel:
    """Fields of MixtralConfig that differ from `make_golden.BASE`, and how the folder is written.

    `seed` is the first from 0 for which no token or expert of the tests' continuations is chosen near a tie.
    """

    fields: Mapping[str, Any]
    seed: int = 0
    spelling: Spelling = "v5"
    max_shard_size: str = "1GB"


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


HF_MODELS: Mapping[str, HfModel] = {
    "multi_head_one_layer": HfModel(
        fields={"num_key_value_heads": 4, "num_hidden_layers": 1, "vocab_size": 128, "rope_parameters": _rope(1e4)},
        spelling="v4",
    ),
    "three_layers": HfModel(fields={"num_hidden_layers": 3, "num_local_experts": 8, "vocab_size": 203}),
    "four_queries_per_key_sliding_window": HfModel(
        fields={
            "hidden_size": 64,
            "num_attention_heads": 8,
            "sliding_window": 8,
            "num_local_experts": 5,
            "rope_parameters": _rope(2.5e5),
        },
    ),
    "eight_queries_per_key_sharded": HfModel(
        fields={"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16, "num_local_experts": 8},
        max_shard_size="40KB",
    ),
    "tied_head_dim": HfModel(
        fields={"tie_word_embeddings": True, "head_dim": 24, "vocab_size": 300, "rms_norm_eps": 1e-2}, spelling="v4"
    ),
    "top1_window_of_three": HfModel(
        fields={"num_experts_per_tok": 1, "num_local_experts": 6, "sliding_window": 3, "rms_norm_eps": 1e-6}
    ),
    "top4_of_16": HfModel(fields={"num_experts_per_tok": 4, "num_local_experts": 16, "intermediate_size": 40}, seed=1),
    "every_expert": HfModel(fields={"num_experts_per_tok": 4, "num_local_experts": 4, "num_hidden_layers": 1}),
}


def build(name: str, folder: Path) -> MixtralForCausalLM:
    """Makes the model called `name`, saves it to `folder` and returns it (float32, eager attention and experts)."""
    spec = HF_MODELS[name]
    model = random_mixtral(config_from(spec.fields), spec.seed)
    save_folder(model, folder, spelling=spec.spelling, max_shard_size=spec.max_shard_size)
    return model


def read_back(folder: Path, dtype: torch.dtype) -> MixtralForCausalLM:
    """The model that transformers loads from `folder`, computing in `dtype`.

    Not the same as `model.to(dtype)`, which also rounds the rotary frequencies.
    """
    return MixtralForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def random_fields(seed: int) -> dict[str, Any]:
    """Random fields of MixtralConfig, a valid and tiny combination for every `seed`."""
    rng = np.random.default_rng([seed, 2])

    def pick(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    kv_heads = pick(1, 2, 4)
    experts = pick(4, 5, 8, 11, 16)
    return {
        "vocab_size": int(rng.integers(90, 300)),
        "hidden_size": pick(32, 48, 64),
        "intermediate_size": pick(16, 24, 40),
        "num_hidden_layers": pick(1, 2, 3),
        "num_attention_heads": kv_heads * pick(1, 2, 4),
        "num_key_value_heads": kv_heads,
        "head_dim": pick(8, 12, 16),
        "num_local_experts": experts,
        "num_experts_per_tok": pick(1, 2, 3, 4),
        "tie_word_embeddings": pick(False, True),
        "sliding_window": pick(None, 2, 8, 40),
        "rms_norm_eps": pick(1e-6, 1e-5, 1e-3),
        "rope_parameters": _rope(pick(1e3, 1e4, 1e6)),
    }
