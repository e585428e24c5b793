"""config.json in both spellings, what absent keys mean, and everything that is refused by name."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moejax.families.config import ModelConfig
from moejax.families.kv_cache import cache_elements_per_token
from moejax.families.table import from_hf, named_config, named_configs, parameters_of
from tests.messages import refuses, says

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
    assert from_hf(raw) == named_configs()["mixtral-8x7b"]


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
    says(refusal({"model_type": model_type}), "model_type", repr(model_type), "'mixtral'")


def test_no_family() -> None:
    with refuses(ValueError, "model_type", "None"):
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
    with refuses(ValueError, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
        from_hf({"model_type": "mixtral"})


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3", "longrope"])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("type_key", ["rope_type", "type"])
def test_rope_scaling_of_every_kind(kind: str, key: str, type_key: str) -> None:
    says(
        refusal({key: {type_key: kind, "factor": 2.0, "rope_theta": 1e4}}), "config.json", key, repr(kind), "'default'"
    )


def test_rope_parameters_of_default_rope_with_more_than_a_base() -> None:
    says(refusal({"rope_parameters": {"rope_theta": 1e4, "factor": 4.0}}), "rope_parameters", "factor=4.0")


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rope_parameters_that_are_no_object(key: str) -> None:
    says(refusal({key: "yarn"}), "config.json", key, "got 'yarn'")


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias", "use_qk_norm"])
def test_a_feature_that_adds_weights(key: str) -> None:
    says(refusal({key: True}), "config.json", f"{key}=True")


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "relu", None])
def test_another_activation(activation: str | None) -> None:
    says(refusal({"hidden_act": activation}), "config.json", "hidden_act", repr(activation), "silu")


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes"])
def test_a_quantised_checkpoint(method: str) -> None:
    says(
        refusal({"quantization_config": {"quant_method": method, "bits": 4}}),
        "config.json",
        "quantization_config",
        method,
        "bf16/f16/f32",
    )


def test_a_quantised_checkpoint_that_does_not_say_how() -> None:
    says(refusal({"quantization_config": {"bits": 4}}), "quantization_config", "{'bits': 4}")


def test_another_head() -> None:
    message = refusal({"architectures": ["MixtralForSequenceClassification"]})
    says(message, "config.json", "['MixtralForSequenceClassification']", "expected MixtralForCausalLM")


@pytest.mark.parametrize(
    ("key", "value"), [("logit_softcap", 30.0), ("num_shared_experts", 1), ("layer_types", ["full"])]
)
def test_an_unknown_key_that_says_something(key: str, value: Any) -> None:
    says(refusal({key: value}), "config.json", f"{key}={value!r}", "remove")


# --- sizes that cannot be ---


@pytest.mark.parametrize("value", [0, -1, 2.0, "32", True])
@pytest.mark.parametrize("key", ["vocab_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings"])
def test_a_size_is_a_positive_whole_number(key: str, value: Any) -> None:
    says(refusal({key: value}), "config.json", key, f"got {value!r}")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"num_key_value_heads": 3}, ("num_attention_heads", "num_key_value_heads", "got 4 and 3")),
        ({"head_dim": 7}, ("head_dim", "got 7")),
        (
            {"hidden_size": 28},
            ("head_dim", "hidden_size", "num_attention_heads", "got 7"),
        ),
        ({"num_experts_per_tok": 5}, ("num_experts_per_tok", "num_local_experts", "got 5 and 4")),
        ({"sliding_window": 0}, ("sliding_window", "got 0")),
        ({"sliding_window": "all"}, ("sliding_window", "got 'all'")),
        ({"rope_theta": 0.0}, ("rope_theta", "got 0.0")),
        ({"rope_theta": float("nan")}, ("rope_theta", "got nan")),
        ({"rms_norm_eps": -1e-5}, ("rms_norm_eps", "got -1e-05")),
        ({"rms_norm_eps": None}, ("rms_norm_eps", "got None")),
        ({"tie_word_embeddings": "no"}, ("tie_word_embeddings", "got 'no'")),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_together(changes: dict[str, Any], facts: tuple[str, ...]) -> None:
    says(refusal(changes), "config.json", *facts)


def test_default_that_does_not_fit_is_called_one() -> None:
    with refuses(ValueError, "num_key_value_heads", "got 4 and 8"):
        from_hf({key: value for key, value in SIZES.items() if key != "num_key_value_heads"})


def test_fields_of_ours_are_named_where_there_is_no_file() -> None:
    with refuses(ValueError, "num_heads", "num_kv_heads", "got 4 and 3"):
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
    assert parameters_of(EXPECTED).per_expert == expert
    assert parameters_of(EXPECTED).total == embed_and_head + final_norm + 2 * (attention + norms + router + 4 * expert)
    assert parameters_of(EXPECTED).active == parameters_of(EXPECTED).total - 2 * 2 * expert
    assert cache_elements_per_token(EXPECTED) == 2 * 2 * 2 * 8
    assert parameters_of(replace(EXPECTED, tie_embeddings=True)).total == parameters_of(EXPECTED).total - 96 * 32


def test_counts_of_the_published_models() -> None:
    """46.7 B (12.9 B active) and 141 B (39 B active), say https://mistral.ai/news/mixtral-of-experts and -8x22b."""
    small, large = named_configs()["mixtral-8x7b"], named_configs()["mixtral-8x22b"]
    assert (parameters_of(small).total, round(parameters_of(small).active / 1e9, 1)) == (46_702_792_704, 12.9)
    assert (parameters_of(large).total, round(parameters_of(large).active / 1e9, 1)) == (140_620_634_112, 39.2)
    assert 2 * cache_elements_per_token(small) == 128 * 1024  # bytes in bfloat16


# --- names ---


@pytest.mark.parametrize("name", ["mixtral-8x7b", "mixtral-8x22b", "186m", "742m"])
def test_named_config(name: str) -> None:
    assert named_config(name) == named_configs()[name]


def test_the_small_models_have_the_size_in_their_name() -> None:
    """In millions; the smaller one is called by what it has without its head."""
    small, large = named_configs()["186m"], named_configs()["742m"]
    head = small.vocab_size * small.embed_dim
    assert ((parameters_of(small).total - head) // 10**6, parameters_of(large).total // 10**6) == (186, 742)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mixtral-8x7B", "mixtral-8x7b"),
        ("mixtral8x22b", "mixtral-8x22b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("mistralai/Mixtral-8x22B-v0.1/", "mixtral-8x22b"),
        ("186M", "186m"),
        ("org/", None),
        ("gpt", None),
        ("", None),
    ],
)
def test_an_unknown_name_lists_the_known_and_the_nearest(name: str, nearest: str | None) -> None:
    with refuses(ValueError, repr(name), ", ".join(named_configs()), "config.json") as caught:
        named_config(name)
    quoted = re.findall("'(.*?)'", str(caught.value))
    assert quoted == [name] if nearest is None else [name, nearest]


def test_a_path_is_a_name_too(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SIZES))
    assert named_config(str(path)) == EXPECTED
    path.write_text(json.dumps(SIZES | {"model_type": "llama"}))
    with refuses(ValueError, path, "model_type", "'llama'"):
        named_config(str(path))


def test_two_rotary_bases_that_disagree() -> None:
    raw = {**SIZES, "rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e4}}
    with refuses(ValueError, "rope_theta", "10000.0", "50000.0", "rope_parameters"):
        from_hf(raw)
