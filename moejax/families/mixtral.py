"""Mixtral (Jiang et al., arXiv:2401.04088): config.json in both of transformers' spellings, weights, names.

The keys are those of transformers' MixtralConfig, whose defaults absent ones take.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from moejax._convert import Fused, Ignore
from moejax.families.config import ModelConfig, config_problem, is_positive_int
from moejax.families.derived import rotary_tables
from moejax.families.family import Family
from moejax.families.hf_config import quantisation, refuse_unknown, take_rope_theta
from moejax.weights.weight import EXPERT, Normal, Ones, Weight, fan_in

# Our fields -> their keys in config.json: those that must be there, and those that have a default.
_REQUIRED: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "embed_dim": "hidden_size",
    "expert_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
}
_OPTIONAL: Mapping[str, str] = {
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "sliding_window": "sliding_window",
    "tie_embeddings": "tie_word_embeddings",
}


def mixtral_config(raw: dict[str, Any]) -> ModelConfig:
    """ModelConfig's fields, checked under the names that config.json has for them.

    Raises:
        ValueError: for a missing or impossible size, and, by name, any feature that is not implemented.
    """
    raw = dict(raw)
    if missing := [key for key in _REQUIRED.values() if raw.get(key) is None]:
        raise ValueError(f"missing {', '.join(missing)}")
    _refuse_unsupported(raw)
    names = {**_REQUIRED, **_OPTIONAL}
    fields = {
        "rope_theta": take_rope_theta(raw),
        **{field: raw.pop(key) for field, key in _REQUIRED.items()},
        "max_position_embeddings": raw.pop("max_position_embeddings", 4096 * 32),
        "norm_eps": raw.pop("rms_norm_eps", 1e-5),
        "sliding_window": raw.pop("sliding_window", None),
        "tie_embeddings": False if (tied := raw.pop("tie_word_embeddings", None)) is None else tied,
    }
    if "num_key_value_heads" not in raw:
        names["num_kv_heads"] = "the default of num_key_value_heads"
    kv_heads = raw.pop("num_key_value_heads", 8)  # transformers: null means as many as query heads
    fields["num_kv_heads"] = fields["num_heads"] if kv_heads is None else kv_heads
    fields["head_dim"] = raw.pop("head_dim", None)
    if fields["head_dim"] is None:
        names["head_dim"] = "head_dim (by default hidden_size / num_attention_heads)"
        fields["head_dim"] = _default_head_dim(fields["embed_dim"], fields["num_heads"])
    if problem := config_problem(fields, names):
        raise ValueError(problem)
    refuse_unknown(raw)
    return ModelConfig(family="mixtral", **fields)


def mixtral_hf_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json of a model, in the spelling that every version of transformers reads."""
    keys = {key: getattr(config, field) for field, key in {**_REQUIRED, **_OPTIONAL}.items()}
    fixed = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu"}
    return {**fixed, **keys, "torch_dtype": dtype}


def mixtral_weights(config: ModelConfig) -> Iterator[Weight]:
    """Every weight; matrices are [outputs, inputs]."""
    d = config.embed_dim
    yield Weight(
        path="embed.table",
        shape=(config.vocab_size, d),
        axes=("vocab", "embed"),
        init=Normal(d**-0.5),
        names=("model.embed_tokens.weight",),
        item="embed",
        key="table",
        part="embed",
    )
    for layer in range(config.num_layers):
        yield from _attention(config, layer)
        yield from _experts(config, layer)
    yield Weight(
        path="final_norm.scale",
        shape=(d,),
        axes=("embed",),
        init=Ones(),
        names=("model.norm.weight",),
        item="head",
        key="norm",
        part="head",
    )
    if not config.tie_embeddings:
        yield Weight(
            path="head.table",
            shape=(config.vocab_size, d),
            axes=("vocab", "embed"),
            init=Normal(d**-0.5),
            names=("lm_head.weight",),
            item="head",
            key="table",
            part="head",
        )


def _attention(config: ModelConfig, layer: int) -> Iterator[Weight]:
    """Norm [D] and projections q [N H, D], k and v [K H, D], o [D, N H] of a layer."""
    d, q, kv = config.embed_dim, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
    item = f"{ours}.attention"
    yield Weight(
        path=f"{ours}.attention_norm.scale",
        shape=(d,),
        axes=("embed",),
        init=Ones(),
        names=(f"{theirs}.input_layernorm.weight",),
        item=item,
        key="norm",
        part="attention",
    )
    for name, rows in (("q", q), ("k", kv), ("v", kv)):
        yield Weight(
            path=f"{ours}.attention.{name}",
            shape=(rows, d),
            axes=("q_heads" if name == "q" else "kv_heads", "embed"),
            init=fan_in(d),
            names=(f"{theirs}.self_attn.{name}_proj.weight",),
            item=item,
            key=name,
            part="attention",
        )
    yield Weight(
        path=f"{ours}.attention.o",
        shape=(d, q),
        axes=("embed", "q_heads"),
        init=fan_in(q),
        names=(f"{theirs}.self_attn.o_proj.weight",),
        item=item,
        key="o",
        part="attention",
    )


def _experts(config: ModelConfig, layer: int) -> Iterator[Weight]:
    """Norm [D], router [E, D] and experts (gate and up [F, D], down [D, F]) of a layer."""
    d, f, e = config.embed_dim, config.expert_dim, config.num_experts
    ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
    yield Weight(
        path=f"{ours}.moe_norm.scale",
        shape=(d,),
        axes=("embed",),
        init=Ones(),
        names=(f"{theirs}.post_attention_layernorm.weight",),
        item=f"{ours}.router",
        key="norm",
        part="attention",
    )
    yield Weight(
        path=f"{ours}.moe.router",
        shape=(e, d),
        axes=(None, "embed"),
        init=fan_in(d),
        names=(f"{theirs}.block_sparse_moe.gate.weight", f"{theirs}.mlp.gate.weight"),  # the second beside fused ones
        item=f"{ours}.router",
        key="router",
        part="router",
    )
    for name, theirs_name, shape in (("gate", "w1", (f, d)), ("up", "w3", (f, d)), ("down", "w2", (d, f))):
        yield Weight(
            path=f"{ours}.moe.experts.{EXPERT}.{name}",
            shape=shape,
            axes=("embed", "mlp") if name == "down" else ("mlp", "embed"),
            init=fan_in(shape[1]),
            names=(f"{theirs}.block_sparse_moe.experts.{EXPERT}.{theirs_name}.weight",),
            item=f"{ours}.experts.{EXPERT}",
            key=name,
            part="experts",
            experts=e,
        )


def _default_head_dim(embed_dim: Any, num_heads: Any) -> int:
    """D / N; where those are no positive numbers, any number, since they are refused by name."""
    return embed_dim // num_heads if is_positive_int(embed_dim) and is_positive_int(num_heads) else 2


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    architectures = raw.get("architectures") or ["MixtralForCausalLM"]
    if not isinstance(architectures, list) or "MixtralForCausalLM" not in architectures:
        raise ValueError(f"architectures {architectures} is not supported; expected MixtralForCausalLM")
    activation = raw.pop("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ValueError(f"hidden_act {activation!r} is not supported; moejax computes silu")
    if quantised := quantisation(raw):
        raise ValueError(f"{quantised}; use the bf16/f16/f32 checkpoint that they were made from")
    for key in ("attention_bias", "mlp_bias", "use_qk_norm"):
        if raw.get(key):
            raise ValueError(f"{key}={raw[key]!r} is not supported")


_LAYER = "model.layers.{layer}"
_EXPERT = f"{_LAYER}.block_sparse_moe.experts.{EXPERT}"

MIXTRAL = Family(
    config=mixtral_config,
    hf_config=mixtral_hf_config,
    weights=mixtral_weights,
    named={
        # https://huggingface.co/mistralai/Mixtral-8x7B-v0.1/blob/main/config.json
        "mixtral-8x7b": ModelConfig(
            vocab_size=32000,
            embed_dim=4096,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            num_experts=8,
            experts_per_token=2,
            expert_dim=14336,
            max_position_embeddings=32768,
        ),
        # https://huggingface.co/mistralai/Mixtral-8x22B-v0.1/blob/main/config.json
        "mixtral-8x22b": ModelConfig(
            vocab_size=32000,
            embed_dim=6144,
            num_layers=56,
            num_heads=48,
            num_kv_heads=8,
            head_dim=128,
            num_experts=8,
            experts_per_token=2,
            expert_dim=16384,
            max_position_embeddings=65536,
        ),
        # Mixtrals of a size for a CPU, called by their parameters: what benchmarks and quick trials of a split run.
        "186m": ModelConfig(
            vocab_size=8192,
            embed_dim=512,
            num_layers=8,
            num_heads=8,
            num_kv_heads=4,
            head_dim=64,
            num_experts=8,
            experts_per_token=2,
            expert_dim=1792,
            max_position_embeddings=4096,
        ),
        "742m": ModelConfig(
            vocab_size=8192,
            embed_dim=1024,
            num_layers=8,
            num_heads=16,
            num_kv_heads=4,
            head_dim=64,
            num_experts=8,
            experts_per_token=2,
            expert_dim=3584,
            max_position_embeddings=4096,
        ),
    },
    # transformers 5 keeps the experts of a layer in two tensors, [E, 2F, D] (gate above up) and [E, D, F].
    fused=tuple(
        row
        for block in ("mlp", "block_sparse_moe")
        for row in (
            Fused(f"{_LAYER}.{block}.experts.gate_up_proj", (f"{_EXPERT}.w1.weight", f"{_EXPERT}.w3.weight"), "expert"),
            Fused(f"{_LAYER}.{block}.experts.down_proj", (f"{_EXPERT}.w2.weight",), "expert"),
        )
    ),
    ignored=(Ignore("lm_head.weight", "tied to the embedding, and equal to it"),),  # where it is no weight of its own
    derived=rotary_tables("model.", f"{_LAYER}.self_attn.", ""),
)
