"""Writes the weights of a Hugging Face folder as GGUF, the file that llama.cpp reads. Imports no JAX.

llama.cpp's own converter is not part of any package; the writer `gguf` is. What it takes: the architecture `llama`
with stacked experts, rows of q and k permuted from halves to pairs (llama.cpp rotates neighbours), and a vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from moejax._convert import CheckpointError, SafetensorsFolder
from moejax.checkpoint import open_checkpoint
from moejax.families.config import ModelConfig
from moejax.families.table import weights_of

ARCHITECTURE = "llama"
_NUMPY = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("f2"), "float32": np.dtype("f4")}
_TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_BYTE_TOKENS = 3  # after <unk>, <s>, </s>


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of the file: its name, shape and dtype, and the tensors that it is made of.

    sources: one, or one per expert.  heads: of q and k, whose rows are permuted; None for all others.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[str, ...]
    heads: int | None = None


def write_gguf(folder: Path, target: Path, dtype: str) -> None:
    """Writes `target`, one tensor at a time: matrices in `dtype`; norms and routers in float32, as llama.cpp wants.

    Raises:
        ValueError: for a model that llama.cpp's architecture cannot express.
        CheckpointError: for a folder that cannot be read.
    """
    gguf = import_module("gguf")
    checkpoint = open_checkpoint(folder)
    config, tensors = checkpoint.config, checkpoint.tensors
    if not isinstance(tensors, SafetensorsFolder):
        raise CheckpointError(f"{folder}: a converted folder; give the Hugging Face folder it was made from")
    if config.sliding_window is not None:
        raise ValueError(
            f"{folder}: a sliding window of {config.sliding_window} tokens, which GGUF's architecture "
            f"{ARCHITECTURE} does not have; leave llama.cpp out"
        )
    writer = gguf.GGUFWriter(target, ARCHITECTURE)
    _add_sizes(writer, config)
    _add_vocabulary(gguf, writer, config.vocab_size)
    entries = list(_entries(config, set(tensors.tensors), dtype))
    for entry in entries:
        raw = getattr(gguf.GGMLQuantizationType, _TYPES[entry.dtype])
        item = _NUMPY[entry.dtype].itemsize
        as_bytes = (*entry.shape[:-1], entry.shape[-1] * item)
        writer.add_tensor_info(entry.name, as_bytes, np.dtype(np.uint8), int(np.prod(as_bytes)), raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries:
        writer.write_tensor_data(_read(tensors, entry, config.head_dim).view(np.uint8))
    writer.close()


def permute_rows(rows: np.ndarray, heads: int, head_dim: int) -> np.ndarray:
    """Rows [heads * H, D] of q or k: each head's halves [first, second] become pairs (first 0, second 0, first 1, ...).

    Hugging Face rotates row i of a head with row i + H/2, llama.cpp row 2i with row 2i + 1.
    """
    halves = rows.reshape(heads, 2, head_dim // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _add_sizes(writer: Any, config: ModelConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.embed_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.expert_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.experts_per_token)


def _add_vocabulary(gguf: Any, writer: Any, size: int) -> None:
    """A vocabulary of made-up texts: prompts are token ids, but llama.cpp wants one."""
    types = gguf.TokenType
    special = [("<unk>", types.UNKNOWN), ("<s>", types.CONTROL), ("</s>", types.CONTROL)]
    byte_tokens = [(f"<0x{byte:02X}>", types.BYTE) for byte in range(256)]
    words = [(f"▁{index}", types.NORMAL) for index in range(size)]
    tokens = (special + byte_tokens + words)[:size]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(index) for index in range(size)])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(min(1, size - 1))
    writer.add_eos_token_id(min(2, size - 1))


# llama.cpp's names by our paths, {0} being the layer; norms and routers are float32 there.
_NAMES = {
    "embed.table": "token_embd",
    "attention_norm.scale": "blk.{0}.attn_norm",
    "attention.q": "blk.{0}.attn_q",
    "attention.k": "blk.{0}.attn_k",
    "attention.v": "blk.{0}.attn_v",
    "attention.o": "blk.{0}.attn_output",
    "moe_norm.scale": "blk.{0}.ffn_norm",
    "moe.router": "blk.{0}.ffn_gate_inp",
    "moe.experts.gate": "blk.{0}.ffn_gate_exps",
    "moe.experts.up": "blk.{0}.ffn_up_exps",
    "moe.experts.down": "blk.{0}.ffn_down_exps",
    "final_norm.scale": "output_norm",
    "head.table": "output",
}


def _entries(config: ModelConfig, names: set[str], dtype: str) -> Iterator[Entry]:
    heads = {"attention.q": config.num_heads, "attention.k": config.num_kv_heads}
    for weight in weights_of(config):
        layer, path = "", weight.parameter
        if path.startswith("layers."):
            _, layer, path = path.split(".", 2)
        if path not in _NAMES:
            raise ValueError(f"{weight.path} has no place in GGUF's architecture {ARCHITECTURE}; leave llama.cpp out")
        sources = tuple(next(name for name in tensor.names if name in names) for tensor in weight.tensors())
        yield Entry(
            name=f"{_NAMES[path].format(layer)}.weight",
            shape=weight.shape if weight.experts is None else (weight.experts, *weight.shape),
            dtype="float32" if len(weight.shape) == 1 or weight.part == "router" else dtype,
            sources=sources,
            heads=heads.get(path),
        )


def _read(tensors: SafetensorsFolder, entry: Entry, head_dim: int) -> np.ndarray:
    """The whole tensor in the dtype of the file."""
    array = np.empty(entry.shape, _NUMPY[entry.dtype])
    parts = array if len(entry.sources) > 1 else array[None]
    for source, part in zip(entry.sources, parts, strict=True):
        tensors.read_into(source, part)
    return array if entry.heads is None else permute_rows(array, entry.heads, head_dim)
