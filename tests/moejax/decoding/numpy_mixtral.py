"""Mixtral in numpy and float64, from the equations: one sequence, no cache, a loop over tokens and experts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """logits: float64 [T, V].  experts: int [T, L, A], best first.

    router_gap: the smallest difference of router logits that decided over an expert or its place.
    """

    logits: np.ndarray
    experts: np.ndarray
    router_gap: float

    @property
    def logprobs(self) -> np.ndarray:
        """log softmax of the logits, [T, V]."""
        return log_softmax(self.logits)


def forward(config: Mapping[str, Any], weights: Weights, ids: Sequence[int]) -> Reference:
    """Logits after each token, and the experts that each token chose in each layer."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    x = weights["model.embed_tokens.weight"][list(ids)]
    experts, gaps = [], []
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        w = {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}
        x = x + _attention(config, w, _norm(config, x, w["input_layernorm.weight"]))
        mixed, chosen, gap = _experts(config, w, _norm(config, x, w["post_attention_layernorm.weight"]))
        x = x + mixed
        experts.append(chosen)
        gaps.append(gap)
    hidden = _norm(config, x, weights["model.norm.weight"])
    return Reference(
        logits=hidden @ weights["lm_head.weight"].T, experts=np.stack(experts, axis=1), router_gap=min(gaps)
    )


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def _norm(config: Mapping[str, Any], x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config["rms_norm_eps"]) * scale


def _attention(config: Mapping[str, Any], w: Weights, x: np.ndarray) -> np.ndarray:
    heads = {
        name: (x @ w[f"self_attn.{name}_proj.weight"].T).reshape(len(x), -1, config["head_dim"])
        for name in ("q", "k", "v")
    }
    queries, keys = _rotate(config, heads["q"]), _rotate(config, heads["k"])
    group = config["num_attention_heads"] // config["num_key_value_heads"]
    distance = np.arange(len(x))[:, None] - np.arange(len(x))[None, :]
    visible = (distance >= 0) & (distance < (config["sliding_window"] or len(x)))
    attended = []
    for head in range(config["num_attention_heads"]):
        scores = queries[:, head] @ keys[:, head // group].T / config["head_dim"] ** 0.5
        attended.append(np.exp(log_softmax(np.where(visible, scores, -np.inf))) @ heads["v"][:, head // group])
    return np.concatenate(attended, axis=1) @ w["self_attn.o_proj.weight"].T


def _rotate(config: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    half = config["head_dim"] // 2
    angles = np.arange(len(x))[:, None] * config["rope_theta"] ** (-np.arange(half) / half)[None, :]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _experts(config: Mapping[str, Any], w: Weights, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    router = x @ w["block_sparse_moe.gate.weight"].T
    chosen = np.argsort(-router, axis=-1, kind="stable")[:, : config["num_experts_per_tok"]]
    mixed = np.zeros_like(x)
    for token, experts in enumerate(chosen):
        shares = np.exp(log_softmax(router[token, experts]))  # of the chosen alone: equal to renormalising all
        for expert, share in zip(experts, shares, strict=True):
            w1, w2, w3 = (w[f"block_sparse_moe.experts.{expert}.w{i}.weight"] for i in (1, 2, 3))
            gate = w1 @ x[token]
            mixed[token] += share * (w2 @ (gate / (1 + np.exp(-gate)) * (w3 @ x[token])))
    ranked = -np.sort(-router, axis=-1)[:, : config["num_experts_per_tok"] + 1]
    return mixed, chosen, float(-np.diff(ranked).max())
