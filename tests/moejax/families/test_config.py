"""config.json in both spellings, what absent keys mean, and everything that is refused by name."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moejax.families.config import NAMED_CONFIGS, ModelConfig, from_hf, named_config

SIZES = {
    "model_type": "mixtral",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
EXPECTED = ModelConfig(
    vocab_size=96,
    embed_dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    num_experts=4,
    experts_per_token=2,
    expert_dim=24,
    max_position_embeddings=131072,
)


def refusal(changes: dict[str, Any]) -> str:
    """The one-line message with which SIZES with `changes` is refused."""
    with pytest.raises(ValueError) as caught:
        from_hf(SIZES | changes)
    message = str(caught.value)
    assert message.startswith("config.json: ") and "\n" not in message
    return message


# --- the two spellings ---

# https://huggingface.co/mistralai/Mixtral-8x7B-v0.1/blob/main/config.json, as transformers 4.36 wrote it
V4 = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
V5 = {key: value for key, value in V4.items() if key not in ("rope_theta", "torch_dtype")} | {
    "dtype": "bfloat16",
    "head_dim": None,
    "pad_token_id": None,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "router_jitter_noise": 0.0,
    "transformers_version": "5.23.0",
}


@pytest.mark.parametrize("raw", [V4, V5], ids=["v4", "v5"])
def test_both_spellings_of_mixtral_8x7b(raw: dict[str, Any]) -> None:
    assert from_hf(raw) == NAMED_CONFIGS["mixtral-8x7b"]


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e4},
        {"rope_parameters": {"rope_theta": 5e4}},
        {"rope_parameters": {"rope_theta": 5e4, "rope_type": "default"}},
        {"rope_theta": 5e4, "rope_scaling": None},
        {"rope_theta": 5e4, "rope_scaling": {"type": "default"}},
    ],
    ids=str,
)
def test_rope_theta_in_every_spelling(rope: dict[str, Any]) -> None:
    assert from_hf(SIZES | rope) == replace(EXPECTED, rope_theta=5e4)


def test_absent_keys_take_the_defaults_of_transformers() -> None:
    config = from_hf(
        {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
        | {"hidden_size": 64, "num_attention_heads": 16}
    )
    assert config == replace(EXPECTED, embed_dim=64, num_heads=16, num_kv_heads=8, head_dim=4)
    assert (config.rope_theta, config.norm_eps, config.sliding_window, config.tie_embeddings) == (
        1e6,
        1e-5,
        None,
        False,
    )


def test_null_means_derived() -> None:
    config = from_hf(
        SIZES | {"num_key_value_heads": None, "head_dim": None, "rope_theta": None, "sliding_window": None}
    )
    assert config == replace(EXPECTED, num_kv_heads=4)


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("head_dim", 24, "head_dim"),
        ("sliding_window", 7, "sliding_window"),
        ("tie_word_embeddings", True, "tie_embeddings"),
        ("rms_norm_eps", 1e-3, "norm_eps"),
        ("max_position_embeddings", 77, "max_position_embeddings"),
        ("num_experts_per_tok", 4, "experts_per_token"),
        ("num_local_experts", 9, "num_experts"),
        ("intermediate_size", 100, "expert_dim"),
    ],
)
def test_a_key_is_read(key: str, value: Any, field: str) -> None:
    assert from_hf(SIZES | {key: value}) == replace(EXPECTED, **{field: value})


@pytest.mark.parametrize(
    "harmless",
    [
        {"attention_bias": False, "mlp_bias": None, "rope_scaling": None, "quantization_config": None},
        {"hidden_act": "swish"},
        {"some_new_switch": False, "some_new_number": 0, "some_new_list": []},
        {"_name_or_path": "x/y", "mlx_version": "1", "transformers_version": "9", "use_cache": False},
        {"architectures": None},
        {"id2label": {"0": "a"}, "eos_token_id": [2, 3], "attention_dropout": 0.1, "auto_map": {"a": "b"}},
    ],
    ids=str,
)
def test_what_does_not_change_the_numbers_is_accepted(harmless: dict[str, Any]) -> None:
    assert from_hf(SIZES | harmless) == EXPECTED


def test_the_given_mapping_is_left_alone() -> None:
    raw = SIZES | {"rope_theta": 1e4}
    before = dict(raw)
    from_hf(raw)
    assert raw == before


# --- refusals ---


@pytest.mark.parametrize("model_type", ["llama", "qwen2_moe", "mistral", "Mixtral", None])
def test_another_family(model_type: str | None) -> None:
    assert refusal({"model_type": model_type}) == (
        f"config.json: model_type is {model_type!r}; moejax decodes 'mixtral' models only"
    )


def test_no_family() -> None:
    with pytest.raises(ValueError, match="model_type is None"):
        from_hf({key: value for key, value in SIZES.items() if key != "model_type"})


@pytest.mark.parametrize("key", [key for key in SIZES if key not in ("model_type", "num_key_value_heads")])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_a_missing_size_is_named(key: str, how: str) -> None:
    raw = SIZES | {key: None}
    if how == "absent":
        del raw[key]
    with pytest.raises(ValueError) as caught:
        from_hf(raw)
    assert str(caught.value) == f"config.json: missing {key}"


def test_all_missing_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="missing vocab_size, hidden_size, intermediate_size, num_hidden_layers"):
        from_hf({"model_type": "mixtral"})


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3", "longrope"])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("type_key", ["rope_type", "type"])
def test_rope_scaling_of_every_kind(kind: str, key: str, type_key: str) -> None:
    assert refusal({key: {type_key: kind, "factor": 2.0, "rope_theta": 1e4}}) == (
        f"config.json: {key} asks for rope type {kind!r}, which is not supported; moejax has 'default' rope"
    )


def test_rope_parameters_of_default_rope_with_more_than_a_base() -> None:
    assert "rope_parameters asks for factor=4.0" in refusal({"rope_parameters": {"rope_theta": 1e4, "factor": 4.0}})


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rope_parameters_that_are_no_object(key: str) -> None:
    assert refusal({key: "yarn"}) == f"config.json: {key} must be an object, got 'yarn'"


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias", "use_qk_norm"])
def test_a_feature_that_adds_weights(key: str) -> None:
    assert refusal({key: True}) == f"config.json: {key}=True is not supported"


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "relu", None])
def test_another_activation(activation: str | None) -> None:
    assert refusal({"hidden_act": activation}) == (
        f"config.json: hidden_act {activation!r} is not supported; moejax computes silu"
    )


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes"])
def test_a_quantised_checkpoint(method: str) -> None:
    assert refusal({"quantization_config": {"quant_method": method, "bits": 4}}) == (
        f"config.json: quantization_config ({method}) is not supported; use the unquantised bf16/f16/f32 checkpoint"
    )


def test_a_quantised_checkpoint_that_does_not_say_how() -> None:
    assert "quantization_config ({'bits': 4}) is not supported" in refusal({"quantization_config": {"bits": 4}})


def test_another_head() -> None:
    assert refusal({"architectures": ["MixtralForSequenceClassification"]}) == (
        "config.json: architectures ['MixtralForSequenceClassification'] is not supported; expected MixtralForCausalLM"
    )


@pytest.mark.parametrize(
    ("key", "value"), [("logit_softcap", 30.0), ("num_shared_experts", 1), ("layer_types", ["full"])]
)
def test_an_unknown_key_that_says_something(key: str, value: Any) -> None:
    assert refusal({key: value}) == (
        f"config.json: {key}={value!r} is not a key moejax knows, so it may change the numbers; "
        "remove it if it does not"
    )


# --- sizes that cannot be ---


@pytest.mark.parametrize("value", [0, -1, 2.0, "32", True])
@pytest.mark.parametrize("key", ["vocab_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings"])
def test_a_size_is_a_positive_whole_number(key: str, value: Any) -> None:
    assert refusal({key: value}) == f"config.json: {key} must be a positive whole number, got {value!r}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple of num_key_value_heads, got 4 and 3"),
        ({"head_dim": 7}, "head_dim must be even for rotary embeddings, got 7"),
        (
            {"hidden_size": 28},
            "head_dim (by default hidden_size / num_attention_heads) must be even for rotary embeddings, got 7",
        ),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok must be at most num_local_experts, got 5 and 4"),
        ({"sliding_window": 0}, "sliding_window must be null or a positive number, got 0"),
        ({"sliding_window": "all"}, "sliding_window must be null or a positive number, got 'all'"),
        ({"rope_theta": 0.0}, "rope_theta must be a positive number, got 0.0"),
        ({"rope_theta": float("nan")}, "rope_theta must be a positive number, got nan"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps must be a positive number, got -1e-05"),
        ({"rms_norm_eps": None}, "rms_norm_eps must be a positive number, got None"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, got 'no'"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_together(changes: dict[str, Any], message: str) -> None:
    assert refusal(changes) == f"config.json: {message}"


def test_default_that_does_not_fit_is_called_one() -> None:
    with pytest.raises(ValueError, match="must be a multiple of the default of num_key_value_heads, got 4 and 8$"):
        from_hf({key: value for key, value in SIZES.items() if key != "num_key_value_heads"})


def test_fields_of_ours_are_named_where_there_is_no_file() -> None:
    with pytest.raises(ValueError, match="^config: num_heads must be a multiple of num_kv_heads, got 4 and 3$"):
        replace(EXPECTED, num_kv_heads=3)


@pytest.mark.parametrize(
    "changes",
    [{"rope_theta": "many"}, {"num_attention_heads": 0}, {"num_attention_heads": "4"}, {"hidden_size": "32"}],
    ids=str,
)
def test_nonsense_is_a_value_error_too(changes: dict[str, Any]) -> None:
    """No other exception, whatever the value: the caller tells it from a bug."""
    refusal(changes)


def test_config_is_frozen_and_keyword_only() -> None:
    with pytest.raises(AttributeError):
        EXPECTED.vocab_size = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        ModelConfig(96)  # type: ignore[call-arg]


# --- counts ---


def test_counts_of_a_small_model() -> None:
    """By hand: every tensor of the model of SIZES."""
    embed_and_head, final_norm = 2 * 96 * 32, 32
    attention = 2 * (4 * 8) * 32 + 2 * (2 * 8) * 32
    norms, router, expert = 2 * 32, 4 * 32, 3 * 32 * 24
    assert EXPECTED.num_expert_parameters == expert
    assert EXPECTED.num_parameters == embed_and_head + final_norm + 2 * (attention + norms + router + 4 * expert)
    assert EXPECTED.num_active_parameters == EXPECTED.num_parameters - 2 * 2 * expert
    assert EXPECTED.cache_elements_per_token == 2 * 2 * 2 * 8
    assert replace(EXPECTED, tie_embeddings=True).num_parameters == EXPECTED.num_parameters - 96 * 32


def test_counts_of_the_published_models() -> None:
    """46.7 B (12.9 B active) and 141 B (39 B active), say https://mistral.ai/news/mixtral-of-experts and -8x22b."""
    small, large = NAMED_CONFIGS["mixtral-8x7b"], NAMED_CONFIGS["mixtral-8x22b"]
    assert (small.num_parameters, round(small.num_active_parameters / 1e9, 1)) == (46_702_792_704, 12.9)
    assert (large.num_parameters, round(large.num_active_parameters / 1e9, 1)) == (140_620_634_112, 39.2)
    assert 2 * small.cache_elements_per_token == 128 * 1024  # bytes in bfloat16


# --- names ---


@pytest.mark.parametrize("name", ["mixtral-8x7b", "mixtral-8x22b", "186m", "742m"])
def test_named_config(name: str) -> None:
    assert named_config(name) == NAMED_CONFIGS[name]


def test_the_small_models_have_the_size_in_their_name() -> None:
    """In millions; the smaller one is called by what it has without its head."""
    small, large = NAMED_CONFIGS["186m"], NAMED_CONFIGS["742m"]
    head = small.vocab_size * small.embed_dim
    assert ((small.num_parameters - head) // 10**6, large.num_parameters // 10**6) == (186, 742)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mixtral-8x7B", "; did you mean 'mixtral-8x7b'?"),
        ("mixtral8x22b", "; did you mean 'mixtral-8x22b'?"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "; did you mean 'mixtral-8x7b'?"),
        ("mistralai/Mixtral-8x22B-v0.1/", "; did you mean 'mixtral-8x22b'?"),
        ("186M", "; did you mean '186m'?"),
        ("org/", ""),
        ("gpt", ""),
        ("", ""),
    ],
)
def test_an_unknown_name_lists_the_known_and_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError) as caught:
        named_config(name)
    assert str(caught.value) == (
        f"unknown model {name!r}: the known names are {', '.join(NAMED_CONFIGS)}, or the path of a config.json{hint}"
    )


def test_a_path_is_a_name_too(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SIZES))
    assert named_config(str(path)) == EXPECTED
    path.write_text(json.dumps(SIZES | {"model_type": "llama"}))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: model_type is 'llama'"):
        named_config(str(path))


def test_two_rotary_bases_that_disagree() -> None:
    raw = {**SIZES, "rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e4}}
    with pytest.raises(ValueError, match="rope_theta is 10000.0 and also 50000.0 in rope_parameters; keep one"):
        from_hf(raw)
