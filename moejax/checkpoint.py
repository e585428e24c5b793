"""A checkpoint's folder, as Hugging Face has it or converted: which tensors it must hold, what its side files say.

Imports no JAX.
"""

import dataclasses
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import convert  # a folder's format is imported when it is opened
from convert import (
    CheckpointError,
    TensorPlan,
    plan,
    read_manifest,
    refuse_unfinished,
    rename,
    split_fused,
)
from convert.contents import download_original, of_file, other_kind
from convert.errors import listed
from convert.files import CONVERTED, DOWNLOADED
from moejax.families.config import ModelConfig
from moejax.families.hf_config import quantisation, read_config_json
from moejax.families.mistral_release import PARAMS, RENAMED, STEM, is_release
from moejax.families.settling import check_count, not_derived, settle_head
from moejax.families.table import RANDOM, family_of, from_hf, from_params
from moejax.text.tokenizer import Tokenizer
from moejax.weights.weight import LogicalTensor

if TYPE_CHECKING:
    Tensors = convert.SafetensorsFolder | convert.OrbaxFolder

DEMO_FOLDER = Path(__file__).parent / "checkpoints" / "demo"

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened folder; no tensor has been read yet but those that follow from others, which were compared.

    config: what config.json says, where the weights do not say otherwise.
    dtype: of most of its bytes.  eos_token_ids: generation_config.json's, else config.json's.
    remarks: where the weights are not what config.json leads one to expect, and what is done then.
    has_config: whether it has a config.json; else it is in Mistral's own layout.
    not_derived: tensors that are not read and do not follow from config.json, with what is the matter.
    """

    folder: Path
    config: ModelConfig
    tensors: "Tensors"
    dtype: str
    eos_token_ids: tuple[int, ...]
    remarks: tuple[str, ...] = ()
    not_derived: Mapping[str, str] = field(default_factory=dict)
    has_config: bool = True

    def plan(self, expected: Mapping[str, LogicalTensor]) -> TensorPlan:
        """Which tensor fills which path.

        Raises:
            CheckpointError: for a missing, unexpected or wrongly shaped tensor.
        """
        shapes = {path: tensor.weight.shape for path, tensor in expected.items()}
        if isinstance(self.tensors, convert.OrbaxFolder):  # in a converted folder every array has our path
            return plan({path: (path,) for path in expected}, (), self.tensors.tensors, shapes)
        names = {path: tensor.names for path, tensor in expected.items()}
        family = family_of(self.config)
        ignored = (*family.ignored, *(derived.ignore for derived in family.derived))
        planned = plan(names, ignored, self.tensors.tensors, shapes)
        return dataclasses.replace(planned, ignored={**planned.ignored, **self.not_derived})

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Read when it is first asked for; None where the folder has none.

        Raises:
            ValueError: for files that are no tokenizer.
        """
        return Tokenizer.from_folder(self.folder)


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Opens the folder that `source` names ("demo" is the one in this package) and reads its side files.

    Raises:
        ValueError: when there is no such folder, or it holds no checkpoint that moejax can use.
    """
    folder = _find_folder(source)
    refuse_unfinished(folder)
    released = is_release(folder)
    if not released and (kind := other_kind(folder)) is not None:
        raise CheckpointError(kind)
    path = folder / (PARAMS if released else "config.json")
    raw = read_config_json(path)
    if not released and (quantised := quantisation(raw)):
        raise CheckpointError(f"{path}: {quantised}; {download_original(folder)}")
    config = from_params(raw, path) if released else from_hf(raw, path)
    tensors = open_release(folder, config) if released else open_tensors(folder, config)
    check_count(tensors, config)
    other = not_derived(tensors, config)
    about_others = (f"{folder}: {listed(other)}: {next(iter(other.values()))}",) if other else ()
    config, tensors, about_head = settle_head(tensors, config)
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
        remarks=(*about_head, *about_others),
        not_derived=other,
        has_config=not released,
    )


def open_tensors(folder: Path, config: ModelConfig) -> "Tensors":
    """The tensors of a folder: converted, where its manifest says so, else Hugging Face's, each expert on its own.

    Raises:
        CheckpointError: when they are missing or damaged.
    """
    manifest = read_manifest(folder)
    if manifest is not None and manifest.format == "orbax":
        return convert.OrbaxFolder.open(folder)
    if manifest is None and (folder / "weights").is_dir() and not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} has weights/ but no manifest.json that moejax wrote; convert it again")
    tensors = convert.SafetensorsFolder.open(folder, DOWNLOADED if manifest is None else CONVERTED)
    return dataclasses.replace(tensors, tensors=split_fused(family_of(config).fused, tensors.tensors))


def open_release(folder: Path, config: ModelConfig) -> "convert.SafetensorsFolder":
    """The tensors of a folder in Mistral's own layout, called and ordered as transformers has them.

    Raises:
        CheckpointError: when they are missing or damaged.
    """
    tensors = convert.SafetensorsFolder.open(folder, stem=STEM)
    return dataclasses.replace(tensors, tensors=rename(RENAMED, tensors.tensors, config.head_dim))


def _find_folder(source: str | Path) -> Path:
    if source == "":  # as a path it would be the current folder, and is most often an unset variable of a shell
        raise ValueError("got an empty name; give 'demo', or the folder of a Hugging Face checkpoint")
    folder = DEMO_FOLDER if str(source) == "demo" else Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        if (kind := of_file(folder)) is not None:
            raise ValueError(f"{source} is {kind}; {download_original(folder.parent)}")
        raise ValueError(f"{source} is a file; give the folder that holds config.json and the safetensors files")
    if str(source).startswith(RANDOM):
        raise ValueError(
            f"{source} has random weights, which are in no file; give 'demo', the folder of a Hugging Face checkpoint "
            "or of a converted one"
        )
    parts = str(source).split("/")
    if len(parts) == 2 and all(parts) and not str(source).startswith((".", "~", "/")):
        command = (
            f"hf download {shlex.quote(str(source))} --exclude 'consolidated*' --local-dir {shlex.quote(parts[1])}"
        )
        raise ValueError(f"there is no folder {source} here, and moejax downloads nothing by itself; run: {command}")
    raise ValueError(
        f"there is no folder {source}; give 'demo', the folder of a Hugging Face checkpoint or of a converted one, or, "
        "where a model is loaded, 'random:NAME' for random weights"
    )


def _main_dtype(tensors: "Tensors") -> str:
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
