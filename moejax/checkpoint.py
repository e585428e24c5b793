"""A checkpoint's folder, as Hugging Face has it or converted: which tensors it must hold, what its side files say.

Imports no JAX.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from moejax import _convert as convert  # a folder's format is imported when it is opened
from moejax._convert import (
    CheckpointError,
    TensorPlan,
    plan,
    read_manifest,
    refuse_unfinished,
    rename,
    split_fused,
)
from moejax._convert.contents import about_file, download_original, other_kind
from moejax._convert.errors import listed
from moejax._convert.files import CONVERTED, DOWNLOADED
from moejax.families.config import ModelConfig
from moejax.families.hf_config import quantisation, read_config_json
from moejax.families.mistral_release import PARAMS, RENAMED, STEM, is_release
from moejax.families.settling import check_count, not_derived, settle_head
from moejax.families.table import RANDOM, family_of, from_hf, from_params
from moejax.hub.failures import HubError, telling_how_to_download_again
from moejax.hub.names import hub_model
from moejax.runtime.paths import user_path
from moejax.text.token_files import GENERATION
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
    dtype: of most of its bytes.  config_eos_ids: what generation_config.json and config.json say ends a text.
    remarks: where the weights are not what config.json leads one to expect, and what is done then.
    has_config: whether it has a config.json; else it is in Mistral's own layout.
    generation: what generation_config.json says.  chat_template: in place of the folder's own.
    not_derived: tensors that are not read and do not follow from config.json, with what is the matter.
    """

    folder: Path
    config: ModelConfig
    tensors: "Tensors"
    dtype: str
    config_eos_ids: tuple[int, ...]
    remarks: tuple[str, ...] = ()
    not_derived: Mapping[str, str] = field(default_factory=dict)
    has_config: bool = True
    generation: Mapping[str, object] = field(default_factory=dict)
    chat_template: str | None = None

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
    @telling_how_to_download_again()
    def tokenizer(self) -> Tokenizer | None:
        """Read when it is first asked for; None where the folder has none.

        Raises:
            ValueError: for files that are no tokenizer.
        """
        found = Tokenizer.from_folder(self.folder, self.generation)
        if found is None or self.chat_template is None:
            return found
        return dataclasses.replace(found, chat_templates={**found.chat_templates, "default": self.chat_template})

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text: those of generation_config.json, config.json and the tokenizer, all of them.

        A fine-tune often changes one of the three: its chats then end where its author meant them to, and what the
        base model ends at is no text of theirs.

        Raises:
            ValueError: for files that are no tokenizer.
        """
        tokenizer = self.tokenizer
        own = () if tokenizer is None or tokenizer.eos_id is None else (tokenizer.eos_id,)
        # A tokenizer may have tokens that the model cannot say.
        return tuple(dict.fromkeys((*self.config_eos_ids, *(i for i in own if i < self.config.vocab_size))))

    @property
    def tokenizer_remark(self) -> str | None:
        """What is odd about the tokenizer beside this model, for whoever loads it."""
        tokenizer, rows = self.tokenizer, self.config.vocab_size
        if tokenizer is None:
            return None
        remarks = []
        if tokenizer.repeated_templates:
            remarks.append(
                f"tokenizer_config.json has more than one chat template named {listed(tokenizer.repeated_templates)}: "
                "the last one counts, as in transformers"
            )
        if tokenizer.num_ids > rows:
            beyond = [i for i in tokenizer.vocabulary if i >= rows]
            remarks.append(
                f"the tokenizer has token ids up to {tokenizer.num_ids - 1}, but the embedding has {rows} rows: a "
                f"prompt with {listed([tokenizer.vocabulary[i] for i in sorted(beyond)])} in it is refused"
            )
        if tokenizer.chat_templates and not self.eos_token_ids:
            remarks.append(
                "no file names an EOS token that the model can say: chats end at max_tokens or at a stop of the request"
            )
        return "; ".join(remarks) or None


def _about_adapter(folder: Path) -> tuple[str, ...]:
    if not os.path.lexists(folder / "adapter_config.json"):
        return ()
    return (f"{folder}: the LoRA adapter beside the weights (adapter_config.json) is not applied; merge it first",)


def _about_index(tensors: "Tensors") -> tuple[str, ...]:
    index = None if isinstance(tensors, convert.OrbaxFolder) else tensors.unread_index
    if index is None:
        return ()
    (single,) = {tensor.file.name for tensor in tensors.tensors.values()}
    return (f"{index.parent}: {single} is read, as transformers does; what {index.name} names beside it is not",)


@telling_how_to_download_again()
def open_checkpoint(source: str | Path, revision: str | None = None) -> Checkpoint:
    """Opens the folder that `source` names and reads its side files.

    "demo" is the folder in this package. A model on Hugging Face (`moejax.hub.names`), at `revision`, is found in the
    cache there, or downloaded.

    Raises:
        ValueError: when there is no such folder or model, or it holds no checkpoint that moejax can use.
    """
    folder = _find_folder(source, revision)
    refuse_unfinished(folder)
    released = is_release(folder)
    if not released and (kind := other_kind(folder)) is not None:
        raise CheckpointError(kind)
    config, raw, path = _read_config(folder, released)
    tensors = open_release(folder, config) if released else open_tensors(folder, config)
    check_count(tensors, config)
    other = not_derived(tensors, config)
    about_others = (f"{folder}: {listed(other)}: {next(iter(other.values()))}",) if other else ()
    config, tensors, about_head = settle_head(tensors, config)
    side = folder / GENERATION
    generation = read_config_json(side) if os.path.lexists(side) else {}
    return Checkpoint(
        folder=folder,
        config=config,
        tensors=tensors,
        dtype=_main_dtype(tensors),
        config_eos_ids=_config_eos_ids(((generation, side), (raw, path)), config.vocab_size),
        remarks=(*about_head, *about_others, *_about_index(tensors), *_about_adapter(folder)),
        not_derived=other,
        has_config=not released,
        generation=generation,
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


def _read_config(folder: Path, released: bool) -> tuple[ModelConfig, Mapping[str, object], Path]:
    """The configuration in a folder, the object that it was read from, and that one's file.

    Raises:
        CheckpointError: for what moejax does not decode.
    """
    path = folder / (PARAMS if released else "config.json")
    raw = read_config_json(path)
    if not released and (quantised := quantisation(raw)):
        raise CheckpointError(f"{path}: {quantised}; {download_original(folder)}")
    return (from_params(raw, path) if released else from_hf(raw, path)), raw, path


def _find_folder(source: str | Path, revision: str | None) -> Path:
    if source == "":  # as a path it would be the current folder, and is most often an unset variable of a shell
        raise ValueError("got an empty name; give 'demo', or the folder of a Hugging Face checkpoint")
    if (wanted := hub_model(source, revision)) is not None:
        from moejax.hub.download import snapshot  # here, because whoever has a folder needs none of it

        try:
            return snapshot(wanted, _read_config)
        except HubError as error:
            if str(source) != wanted.repo:
                raise
            raise HubError(f"there is no folder {source} here, and {error}") from error
    folder = DEMO_FOLDER if str(source) == "demo" else user_path(source, "source")
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(about_file(folder))
    if str(source).startswith(RANDOM):
        raise ValueError(
            f"{source} has random weights, which are in no file; give 'demo', the folder of a Hugging Face checkpoint "
            "or of a converted one"
        )
    raise ValueError(
        f"there is no folder {source}; give 'demo', the folder of a Hugging Face checkpoint or of a converted one, the "
        "id of a model there (ORG/NAME), or, where a model is loaded, 'random:NAME' for random weights"
    )


def _main_dtype(tensors: "Tensors") -> str:
    sizes: dict[str, int] = {}
    for info in tensors.tensors.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    dtype = max(sizes, key=lambda name: sizes[name])
    if dtype not in _DTYPES:
        raise CheckpointError(f"the weights are {dtype}; moejax reads {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _config_eos_ids(files: Sequence[tuple[Mapping[str, object], Path]], vocab_size: int) -> tuple[int, ...]:
    """The EOS ids of all files. The first file that names some is held to it; what others have too much is left out."""
    found: list[int] = []
    decided = False
    for fields, path in files:
        value = fields.get("eos_token_id")
        if value is None:
            continue
        given = value if isinstance(value, list) else [value]
        ids = [i for i in given if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab_size]
        if len(ids) != len(given) and not decided:
            raise ValueError(f"{path}: eos_token_id must be token ids below {vocab_size}, got {json.dumps(value)}")
        decided = True
        found += ids
    return tuple(dict.fromkeys(found))
