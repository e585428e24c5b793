"""A Hugging Face Mixtral folder: which tensors it must hold, and what its side files say. Imports no JAX."""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convert import CheckpointError, Ignore, Plan, Rule, SafetensorsFolder, plan
from moejax.config import ModelConfig, from_hf, read_config_json

DEMO_FOLDER = Path(__file__).parent / "checkpoints" / "demo"

_LAYER = "model.layers.{layer}"
_EXPERT = "model.layers.{layer}.block_sparse_moe.experts.{expert}"

# Hugging Face's names of Mixtral's tensors -> paths of parameters, each expert on its own.
HF_RULES = (
    Rule("model.embed_tokens.weight", "embed.table"),
    Rule(f"{_LAYER}.input_layernorm.weight", "layers.{layer}.attention_norm.scale"),
    Rule(f"{_LAYER}.self_attn.q_proj.weight", "layers.{layer}.attention.q"),
    Rule(f"{_LAYER}.self_attn.k_proj.weight", "layers.{layer}.attention.k"),
    Rule(f"{_LAYER}.self_attn.v_proj.weight", "layers.{layer}.attention.v"),
    Rule(f"{_LAYER}.self_attn.o_proj.weight", "layers.{layer}.attention.o"),
    Rule(f"{_LAYER}.post_attention_layernorm.weight", "layers.{layer}.moe_norm.scale"),
    Rule(f"{_LAYER}.block_sparse_moe.gate.weight", "layers.{layer}.moe.router"),
    Rule(f"{_EXPERT}.w1.weight", "layers.{layer}.moe.experts.{expert}.gate"),
    Rule(f"{_EXPERT}.w3.weight", "layers.{layer}.moe.experts.{expert}.up"),
    Rule(f"{_EXPERT}.w2.weight", "layers.{layer}.moe.experts.{expert}.down"),
    Rule("model.norm.weight", "final_norm.scale"),
    Rule("lm_head.weight", "head.table"),
)
_IGNORES = (
    Ignore(f"{_LAYER}.self_attn.rotary_emb.inv_freq", "derived from rope_theta"),
    Ignore("lm_head.weight", "tied to the embedding"),  # a rule comes first where the head is a parameter of its own
)
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened folder; no tensor has been read yet.

    dtype: of most of its bytes.  eos_token_ids: generation_config.json's, else config.json's.
    """

    folder: Path
    config: ModelConfig
    tensors: SafetensorsFolder
    dtype: str
    eos_token_ids: tuple[int, ...]

    def plan(self, expected: Mapping[str, tuple[int, ...]]) -> Plan:
        """Which tensor fills which parameter path.

        Raises:
            CheckpointError: for a missing, unexpected or wrongly shaped tensor.
        """
        return plan(HF_RULES, _IGNORES, self.tensors.tensors, expected)


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Opens the folder that `source` names ("demo" is the one in this package) and reads its side files.

    Raises:
        ValueError: when there is no such folder, or it holds no Mixtral checkpoint that moejax can use.
    """
    folder = _find_folder(source)
    path = folder / "config.json"
    raw = read_config_json(path)
    config = from_hf(raw, path)
    tensors = SafetensorsFolder.open(folder)
    generation = folder / "generation_config.json"
    side = read_config_json(generation) if os.path.lexists(generation) else {}
    named = side.get("eos_token_id") is not None
    eos = side["eos_token_id"] if named else raw.get("eos_token_id")
    return Checkpoint(
        folder=folder,
        config=config,
        tensors=tensors,
        dtype=_main_dtype(tensors),
        eos_token_ids=_token_ids(eos, config.vocab_size, generation if named else path),
    )


def _find_folder(source: str | Path) -> Path:
    if source == "":  # as a path it would be the current folder, and is most often an unset variable of a shell
        raise ValueError("got an empty name; give 'demo', or the folder of a Hugging Face checkpoint")
    folder = DEMO_FOLDER if str(source) == "demo" else Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"{source} is a file; give the folder that holds config.json and the safetensors files")
    parts = str(source).split("/")
    if len(parts) == 2 and all(parts) and not str(source).startswith((".", "~", "/")):
        command = (
            f"hf download {shlex.quote(str(source))} --exclude 'consolidated*' --local-dir {shlex.quote(parts[1])}"
        )
        raise ValueError(f"there is no folder {source} here, and moejax downloads nothing by itself; run: {command}")
    raise ValueError(
        f"there is no folder {source}; give 'demo', the folder of a Hugging Face checkpoint, or 'random:NAME' for "
        "random weights"
    )


def _main_dtype(tensors: SafetensorsFolder) -> str:
    sizes: dict[str, int] = {}
    for info in tensors.tensors.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    dtype = max(sizes, key=lambda name: sizes[name])
    if dtype not in _DTYPES:
        raise CheckpointError(f"the weights are {dtype}; moejax reads {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _token_ids(value: object, vocab_size: int, path: Path) -> tuple[int, ...]:
    if value is None:
        return ()
    given = value if isinstance(value, list) else [value]
    ids = tuple(i for i in given if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab_size)
    if len(ids) != len(given):
        raise ValueError(f"{path}: eos_token_id must be token ids below {vocab_size}, got {json.dumps(value)}")
    return ids
