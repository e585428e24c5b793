"""The GGUF file, read back with the package that others read it with."""

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from moejax.bench.gguf_folder import permute_rows, write_gguf
from moejax.bench.random_folder import write_random_folder
from moejax.checkpoint import open_checkpoint
from moejax.families.config import ModelConfig
from tests.messages import refuses

CONFIG = ModelConfig(
    vocab_size=300,
    embed_dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    num_experts=3,
    experts_per_token=2,
    expert_dim=24,
    max_position_embeddings=64,
    rope_theta=1e4,
)


def written(folder: Path, dtype: str, config: ModelConfig = CONFIG) -> gguf.GGUFReader:
    write_random_folder(folder / "hf", config, dtype)
    write_gguf(folder / "hf", folder / "model.gguf", dtype)
    return gguf.GGUFReader(folder / "model.gguf")


def field(reader: gguf.GGUFReader, name: str) -> Any:
    found = reader.get_field(name)
    assert found is not None, name
    return found.contents()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_tensor_is_there_with_its_values(tmp_path: Path, dtype: str) -> None:
    reader = written(tmp_path, dtype)
    source = open_checkpoint(tmp_path / "hf").tensors
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 3 + 2 * 10

    def values(name: str) -> np.ndarray:
        data = np.array(tensors[name].data)
        return data.view(ml_dtypes.bfloat16).astype(np.float32) if data.dtype == np.uint8 else data

    def read(name: str, *shape: int) -> np.ndarray:
        out = np.empty(shape, np.float32)
        source.read_into(name, out)
        return out

    layer = "model.layers.1"
    assert (values("output.weight") == read("lm_head.weight", 300, 32)).all()
    assert (values("blk.1.attn_v.weight") == read(f"{layer}.self_attn.v_proj.weight", 16, 32)).all()
    experts = [read(f"{layer}.block_sparse_moe.experts.{e}.w2.weight", 32, 24) for e in range(3)]
    assert (values("blk.1.ffn_down_exps.weight") == np.stack(experts)).all()
    q = read(f"{layer}.self_attn.q_proj.weight", 32, 32)
    assert (values("blk.1.attn_q.weight")[8:16:2] == q[8:12]).all()  # the first half of head 1 is its even rows
    assert (values("blk.1.attn_q.weight")[9:16:2] == q[12:16]).all()
    assert tensors["blk.0.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    wanted = {"bfloat16": gguf.GGMLQuantizationType.BF16, "float32": gguf.GGMLQuantizationType.F32}
    assert tensors["token_embd.weight"].tensor_type == wanted[dtype]


def test_sizes_and_a_vocabulary(tmp_path: Path) -> None:
    reader = written(tmp_path, "float32")
    sizes = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 1e4,
        "llama.expert_count": 3,
        "llama.expert_used_count": 2,
        "llama.feed_forward_length": 24,
    }
    assert {name: field(reader, name) for name in sizes} == sizes
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert (len(tokens), len(set(tokens)), tokens[3 + 10]) == (300, 300, "<0x0A>")


def test_tied_embeddings_have_no_output(tmp_path: Path) -> None:
    reader = written(tmp_path, "bfloat16", dataclasses.replace(CONFIG, tie_embeddings=True))
    assert "output.weight" not in {tensor.name for tensor in reader.tensors}


def test_a_sliding_window_is_refused(tmp_path: Path) -> None:
    write_random_folder(tmp_path / "hf", dataclasses.replace(CONFIG, sliding_window=16), "float32")
    with refuses(ValueError, "16 tokens", "GGUF", "llama"):
        write_gguf(tmp_path / "hf", tmp_path / "model.gguf", "float32")
    assert not (tmp_path / "model.gguf").exists()


def test_rotating_neighbours_after_the_permutation_is_rotating_halves_before() -> None:
    """The scores of a query with a key are the same, which is all that attention sees."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 8, 5))
    x = rng.standard_normal(5)
    angle = rng.standard_normal(4)

    def halves(rows: np.ndarray) -> np.ndarray:
        a, b = rows[:4], rows[4:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])

    def pairs(rows: np.ndarray) -> np.ndarray:
        a, b = rows[0::2], rows[1::2]
        turned = [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
        return np.stack(turned, axis=1).reshape(-1)

    ours = halves(q @ x) @ (k @ x)
    theirs = pairs(permute_rows(q, 1, 8) @ x) @ (permute_rows(k, 1, 8) @ x)
    assert theirs == pytest.approx(ours)
    assert pairs(q @ x) @ (k @ x) != pytest.approx(ours)
