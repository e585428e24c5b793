"""A family that nobody has: Mixtral with norms of the query heads, a bias of the queries, a first layer without
experts, and other names. All that a family is stands in this file.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from moejax.families.config import ModelConfig
from moejax.families.family import Family
from moejax.families.mixtral import mixtral_weights
from moejax.weights.weight import Ones, Weight, Zeros, fan_in


def config(raw: dict[str, Any]) -> ModelConfig:
    sizes = {name: raw[name] for name in ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads")}
    sizes |= {name: raw[name] for name in ("head_dim", "num_experts", "experts_per_token", "expert_dim", "dense_dim")}
    return ModelConfig(family="made_up", dense_layers=(0,), max_position_embeddings=128, **sizes)


def hf_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    names = "vocab_size embed_dim num_layers num_heads num_kv_heads head_dim num_experts experts_per_token expert_dim"
    sizes = {name: getattr(config, name) for name in (*names.split(), "dense_dim")}
    return {"model_type": "made_up", **sizes, "torch_dtype": dtype}


def weights(config: ModelConfig) -> Iterator[Weight]:
    for weight in mixtral_weights(config):
        dense = any(weight.path.startswith(f"layers.{layer}.moe.") for layer in config.dense_layers)
        if not dense:
            yield replace(weight, names=(f"decoder.{weight.path}",))
    for layer in range(config.num_layers):
        item = f"layers.{layer}.attention"
        q = config.num_heads * config.head_dim
        yield Weight(
            path=f"layers.{layer}.attention.q_bias",
            shape=(q,),
            axes=("q_heads",),
            init=Zeros(),
            names=(f"decoder.{layer}.query.offset",),
            item=item,
            key="q_bias",
            part="attention",
        )
        yield Weight(
            path=f"layers.{layer}.attention.q_norm",
            shape=(config.head_dim,),
            axes=("head_dim",),
            init=Ones(),
            names=(f"decoder.{layer}.query.norm",),
            item=item,
            key="q_norm",
            part="attention",
        )
    for layer in config.dense_layers:
        d, f = config.embed_dim, config.dense_dim or 0
        for name, shape in (("gate", (f, d)), ("up", (f, d)), ("down", (d, f))):
            yield Weight(
                path=f"layers.{layer}.mlp.{name}",
                shape=shape,
                axes=("embed", "hidden") if name == "down" else ("hidden", "embed"),
                init=fan_in(shape[1]),
                names=(f"decoder.{layer}.network.{name}",),
                item=f"layers.{layer}.mlp",
                key=name,
                part="mlp",
            )


MADE_UP = Family(config=config, hf_config=hf_config, weights=weights, named={})
