"""128 experts in 48 layers of a small width load, compile and decode: nothing is made once per expert."""

import json
from pathlib import Path

import jax
import pytest

import moejax

RAW = {
    "model_type": "mixtral",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 128,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 256,
}


@pytest.mark.slow
def test_parameters_do_not_grow_with_the_experts(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(RAW))
    model = moejax.load(f"random:{path}", expert_backend="native")
    layer = 2 + 4 + 1 + 3  # norms, attention, router, experts
    assert len(model.params) == 48 * layer + 3 + 1  # embedding, last norm, head; and where experts are
    assert len(jax.tree.leaves(model.params)) == len(model.params)
    results = moejax.decode(model, [[1, 2, 3], [4]], max_tokens=4, ignore_eos=True)
    assert [len(result.token_ids) for result in results] == [4, 4]
    assert sum(map(sum, results[0].stats.expert_rows)) > 0
