"""Tiny random Mixtrals in Hugging Face format, made with numpy, and what numpy computes for them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers.pre_tokenizers import ByteLevel

import moejax
from tests.moejax.decoding.numpy_mixtral import Reference, Weights, forward
from tests.tokenizer_models import byte_level, save

BASE: Mapping[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": 300,  # as the byte-level tokenizer has
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 1024,
    "rope_theta": 1e4,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
}
# What the models like to write: characters of one to four bytes, one token per byte.
SPELLED = "aéb€c日d😀eжf本"


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A loaded model beside the config and the float32 weights that it was written with."""

    model: "moejax.Model"  # quoted: evaluating it would import JAX before tests/conftest.py has set its options
    config: Mapping[str, Any]
    weights: Weights

    def reference(self, ids: Sequence[int]) -> Reference:
        return forward(self.config, self.weights, ids)


def load_tiny(folder: Path, *, seed: int = 0, tokenizer: bool = True, **fields: Any) -> Tiny:
    """Writes a random checkpoint to `folder`, `fields` in place of `BASE`'s, and loads it in float32."""
    config = {**BASE, **fields}
    weights = random_weights(config, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / "model.safetensors")
    if tokenizer:
        save(folder, byte_level())
    return Tiny(model=moejax.load(folder, dtype="float32"), config=config, weights=weights)


def random_weights(config: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Weights so large that every part shows in the logits, and a head that makes `SPELLED` likely."""
    rng = np.random.default_rng(seed)
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, kv = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))

    def normal(rows: int, columns: int, gain: float) -> np.ndarray:
        return (gain / columns**0.5 * rng.standard_normal((rows, columns))).astype(np.float32)

    def scale() -> np.ndarray:
        return (1 + 0.2 * rng.standard_normal(d)).astype(np.float32)

    weights = {"model.embed_tokens.weight": normal(v, d, d**0.5), "model.norm.weight": scale()}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        weights[f"{name}.input_layernorm.weight"] = scale()
        weights[f"{name}.self_attn.q_proj.weight"] = normal(q, d, 2)
        weights[f"{name}.self_attn.k_proj.weight"] = normal(kv, d, 1.5)
        weights[f"{name}.self_attn.v_proj.weight"] = normal(kv, d, 1.5)
        weights[f"{name}.self_attn.o_proj.weight"] = normal(d, q, 1.5)
        weights[f"{name}.post_attention_layernorm.weight"] = scale()
        weights[f"{name}.block_sparse_moe.gate.weight"] = normal(config["num_local_experts"], d, 2)
        for expert in range(config["num_local_experts"]):
            part = f"{name}.block_sparse_moe.experts.{expert}"
            weights[f"{part}.w1.weight"] = normal(f, d, 1.5)
            weights[f"{part}.w2.weight"] = normal(d, f, 1.5)
            weights[f"{part}.w3.weight"] = normal(f, d, 1.5)
    head = normal(v, d, 3)
    spelled = spelled_tokens()
    for token, following in set(zip(spelled, [*spelled[1:], spelled[0]], strict=True)):
        head[following] += weights["model.embed_tokens.weight"][token] * np.float32(2 / d**0.5)
    return weights | {"lm_head.weight": head}


def spelled_tokens() -> list[int]:
    """`SPELLED` with one token per byte, as ids of `byte_level()`."""
    ids = byte_level().get_vocab()
    words = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(SPELLED)
    return [ids[letter] for word, _ in words for letter in word]
