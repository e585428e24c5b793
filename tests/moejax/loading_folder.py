"""A small checkpoint, tensor by tensor, written in every way that the loading tests need."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moejax
from tests.convert.checkpoint_files import write_single
from tests.moejax.decoding.tiny_checkpoint import BASE

CONFIG = {**BASE, "vocab_size": 40, "num_hidden_layers": 1, "num_local_experts": 3, "max_position_embeddings": 64}
LAYER = "model.layers.0"
W1 = f"{LAYER}.block_sparse_moe.experts.1.w1.weight"
GATE = f"{LAYER}.block_sparse_moe.gate.weight"

Tensors = dict[str, np.ndarray]


def small_tensors() -> Tensors:
    rng = np.random.default_rng(0)
    d, f, v, e, q, kv = 32, 24, 40, 3, 32, 16
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (v, d),
        "model.norm.weight": (d,),
        "lm_head.weight": (v, d),
        f"{LAYER}.input_layernorm.weight": (d,),
        f"{LAYER}.post_attention_layernorm.weight": (d,),
        f"{LAYER}.self_attn.q_proj.weight": (q, d),
        f"{LAYER}.self_attn.k_proj.weight": (kv, d),
        f"{LAYER}.self_attn.v_proj.weight": (kv, d),
        f"{LAYER}.self_attn.o_proj.weight": (d, q),
        GATE: (e, d),
    }
    for expert in range(e):
        part = f"{LAYER}.block_sparse_moe.experts.{expert}"
        shapes |= {f"{part}.w1.weight": (f, d), f"{part}.w3.weight": (f, d), f"{part}.w2.weight": (d, f)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, tensors: Mapping[str, np.ndarray], **config: Any) -> Path:
    """A checkpoint folder with one file."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return write_single(folder, tensors)


def refusal(folder: Path, **options: Any) -> str:
    """The one-line message with which loading `folder` fails, its path written as FOLDER."""
    with pytest.raises(ValueError) as caught:
        moejax.load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(folder), "FOLDER")
