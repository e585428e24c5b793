"""Keys of config.json that are no business of a model's, that nobody knows, and sizes that no model has."""

import json
from typing import Any

import pytest
from transformers import GenerationConfig, MixtralConfig, PretrainedConfig

from moejax.families.config import ModelConfig
from moejax.families.table import from_hf
from tests.messages import says
from tests.moejax.families.test_config import EXPECTED, SIZES, refusal

# What transformers 4.57 writes for any configuration: PretrainedConfig.to_dict of a made-up model.
GENERIC_V4 = {
    **{"add_cross_attention": False, "architectures": None, "bad_words_ids": None, "begin_suppress_tokens": None},
    **{"chunk_size_feed_forward": 0, "cross_attention_hidden_size": None, "decoder_start_token_id": None},
    **{"diversity_penalty": 0.0, "do_sample": True, "early_stopping": False, "encoder_no_repeat_ngram_size": 0},
    **{"exponential_decay_length_penalty": None, "finetuning_task": "chat", "forced_bos_token_id": None},
    **{"id2label": {"0": "LABEL_0"}, "is_decoder": True, "is_encoder_decoder": False, "label2id": {"LABEL_0": 0}},
    **{"length_penalty": 1.0, "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1},
    **{"num_beams": 1, "num_return_sequences": 1, "output_attentions": False, "output_scores": False, "prefix": ""},
    **{"pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0, "return_dict": True},
    **{"return_dict_in_generate": False, "sep_token_id": None, "suppress_tokens": None, "temperature": 1.0},
    **{
        "task_specific_params": None,
        "tf_legacy_loss": False,
        "tie_encoder_decoder": False,
        "tie_word_embeddings": False,
    },
    **{"tokenizer_class": "LlamaTokenizer", "top_k": 50, "top_p": 1.0, "torchscript": False, "typical_p": 1.0},
    **{"torch_dtype": "bfloat16", "use_bfloat16": False, "unk_token_id": 0, "gradient_checkpointing": True},
}


@pytest.mark.parametrize(
    "written",
    [GENERIC_V4, PretrainedConfig().to_dict(), GenerationConfig(max_new_tokens=9, temperature=0.5).to_dict()],
    ids=["transformers 4", "transformers 5", "generation"],
)
def test_what_transformers_writes_for_any_configuration_is_accepted(written: dict[str, Any]) -> None:
    assert from_hf(written | SIZES) == EXPECTED


def test_what_transformers_writes_for_a_mixtral_is_accepted() -> None:
    sizes = {key: value for key, value in SIZES.items() if key != "model_type"}
    written = MixtralConfig(**sizes).to_diff_dict()
    assert from_hf(json.loads(json.dumps(written, default=str))) == EXPECTED


def test_all_unknown_keys_are_named_at_once() -> None:
    says(
        refusal({"logit_softcap": 30.0, "use_cache": True, "shared": 1, "b": "xxxx"}),
        "logit_softcap=30.0",
        "shared=1",
        "b='xxxx'",
    )
    message = refusal({f"key_{number}": 1 for number in range(100_000)})
    assert len(message) < 2100
    says(message, "key_0=1", "key_19=1", "99980 more")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"num_hidden_layers": 10**9}, ("num_hidden_layers", "1000", "got 1000000000")),
        ({"num_local_experts": 10**7}, ("num_hidden_layers x num_local_experts", "got 2 x 10000000")),
        ({"num_hidden_layers": 1000, "num_local_experts": 31}, ("num_local_experts", "30000", "got 1000 x 31")),
        ({"vocab_size": 2**31}, ("vocab_size", "2^31")),
        ({"hidden_size": 10**4000}, ("hidden_size", "2^31")),
    ],
    ids=lambda value: str(value)[:50],
)
def test_sizes_that_no_model_has_are_told_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], facts: tuple[str, ...]
) -> None:
    def build(config: ModelConfig) -> None:
        raise AssertionError("weights were listed")

    monkeypatch.setattr("moejax.families.table.weights_of", build)
    message = refusal(changes)
    says(message, *facts)
    assert len(message) < 300
