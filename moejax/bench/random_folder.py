"""A Hugging Face folder of random weights, so that every system compared reads the same ones. Imports no JAX."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from moejax.families.config import ModelConfig

STD = 0.02  # transformers' initializer_range
_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


def write_random_folder(folder: Path, config: ModelConfig, dtype: str, seed: int = 0) -> None:
    """Writes config.json and safetensors, a file per layer; the same bytes for the same arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(config, dtype), indent=2), encoding="utf-8")
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


def hf_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json of a model, in the spelling that every version of transformers reads."""
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.expert_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "sliding_window": config.sliding_window,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "torch_dtype": dtype,
    }


def _files(config: ModelConfig, dtype: np.dtype, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """The tensors of each file: one per layer, and one for the rest."""
    d, f = config.embed_dim, config.expert_dim
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def weight(rows: int, columns: int) -> np.ndarray:
        return (STD * rng.standard_normal((rows, columns), np.float32)).astype(dtype)

    for layer in range(config.num_layers):
        name = f"model.layers.{layer}"
        tensors = {
            f"{name}.input_layernorm.weight": np.ones(d, dtype),
            f"{name}.post_attention_layernorm.weight": np.ones(d, dtype),
            f"{name}.self_attn.q_proj.weight": weight(q, d),
            f"{name}.self_attn.k_proj.weight": weight(kv, d),
            f"{name}.self_attn.v_proj.weight": weight(kv, d),
            f"{name}.self_attn.o_proj.weight": weight(d, q),
            f"{name}.block_sparse_moe.gate.weight": weight(config.num_experts, d),
        }
        for expert in range(config.num_experts):
            part = f"{name}.block_sparse_moe.experts.{expert}"
            tensors |= {f"{part}.w1.weight": weight(f, d), f"{part}.w3.weight": weight(f, d)}
            tensors |= {f"{part}.w2.weight": weight(d, f)}
        yield tensors
    rest = {"model.embed_tokens.weight": weight(config.vocab_size, d), "model.norm.weight": np.ones(d, dtype)}
    yield rest if config.tie_embeddings else rest | {"lm_head.weight": weight(config.vocab_size, d)}
