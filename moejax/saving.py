"""From a model on its devices to a folder: Hugging Face's safetensors, or a converted one."""

import errno
import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

import moejax
from moejax._convert import (
    FLOAT_DTYPES,
    ArrayPlan,
    CheckpointError,
    Conversion,
    Item,
    OrbaxTarget,
    Place,
    SafetensorsTarget,
    TensorInfo,
    run,
)
from moejax._convert.durable import move, remove, writing
from moejax._convert.manifest import FORMATS, Format
from moejax._convert.reading import ByteCounter, all_finite
from moejax._convert.tensor_info import Index
from moejax.conversion import DEFAULT_SHARD_SIZE, links_out, parse_size, side_bytes, side_files
from moejax.families.table import family_of, weights_of
from moejax.loading import Model
from moejax.runtime.keywords import known_keywords
from moejax.runtime.paths import user_path
from moejax.weights.weight import LogicalTensor, logical_tensors

_logger = logging.getLogger(__name__)

_WORDS = {dtype.name: word for word, dtype in FLOAT_DTYPES.items()}


@known_keywords
def save(
    model: Model,
    folder: str | Path,
    *,
    format: Format = "safetensors",
    shard_size: str = DEFAULT_SHARD_SIZE,
    verify: bool = True,
) -> Path:
    """Writes a model, as it is in memory, to a new folder that `load` and, of format "safetensors", transformers read.

    config.json, the tokenizer and texts of the folder that the model came from go along; config.json names the dtype of
    the weights, which is the model's. A model of random weights gets a config.json and has no tokenizer. The folder has
    its name only once all of it is written.

    Args:
        format: "safetensors" (a Hugging Face folder) or "orbax" (what `moejax convert` makes of one).
        shard_size: most bytes of weights in a safetensors file, as in "5GB" or "500MB".
        verify: read every array back and compare its checksum.

    Returns:
        The folder.

    Raises:
        ValueError: when the folder is there or cannot be made, the one that the model came from is not any more, a
            weight holds NaN or infinity, the disk has no room, or one of several processes saves. Nothing is left
            behind then, no folder above it either.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be {' or '.join(FORMATS)}, got {format!r}")
    if jax.process_count() > 1:
        raise ValueError(f"save is for one process, and this is one of {jax.process_count()}: load the model in one")
    if not isinstance(model, Model):
        raise ValueError(f"save takes a model that moejax.load gave, got {model!r:.80}")
    target = _new_folder(folder)
    above = [path for path in target.absolute().parents if not path.exists()]
    unfinished = target.parent / f".moejax-saving-{uuid.uuid4().hex}"
    conversion = _conversion(model, unfinished, format, parse_size(shard_size))
    try:
        run(conversion, check=verify, workers=1)
        _name(unfinished, target)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(unfinished), str(target))) from error
    finally:
        remove(unfinished)
        _remove_empty(above)
    return target


def _new_folder(folder: str | Path) -> Path:
    """The path of a folder that is not there, and may be.

    Raises:
        ValueError: for anything else.
    """
    target = user_path(folder, "folder")
    if os.path.lexists(target) or target.name in ("", ".."):
        raise ValueError(f"{target} is there already; give the name of a new folder")
    if file := next((path for path in target.parents if path.exists() and not path.is_dir()), None):
        raise ValueError(f"{target} cannot be a folder, since {file} is a file; give the name of a new folder")
    return target


def _name(unfinished: Path, target: Path) -> None:
    """Gives a finished folder its name, which another save may have taken meanwhile.

    Raises:
        ValueError: then.
    """
    with writing(target):
        try:
            move(unfinished, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise ValueError(f"{target} was made meanwhile; give the name of a new folder") from error


def _remove_empty(folders: Sequence[Path]) -> None:
    """Removes folders that hold nothing, the deepest first."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise


def _conversion(model: Model, folder: Path, format: Format, shard_bytes: int) -> Conversion:
    tensors = logical_tensors(weights_of(model.config))
    arrays = {
        path: ArrayPlan(
            source=path,
            target=path if format == "orbax" else tensor.names[0],
            shape=tensor.weight.shape,
            dtype=_WORDS[model.dtype],
        )
        for path, tensor in tensors.items()
    }
    grouped: dict[str, list[ArrayPlan]] = {}
    for path, tensor in tensors.items():
        grouped.setdefault(tensor.item, []).append(arrays[path])
    if format == "orbax":
        places = {
            path: Place(item=one.item, key=one.weight.key, split_axis=one.weight.split_axis)
            for path, one in tensors.items()
        }
        target = OrbaxTarget(folder=folder, places=places)
    else:
        target = SafetensorsTarget(folder=folder, arrays=tuple(arrays.values()), shard_bytes=shard_bytes)
    return Conversion(
        source=_ModelTensors(model=model, names=tensors),
        source_folder=None,
        source_format="safetensors",
        source_files={},
        target=target,
        items=[Item(name=name, arrays=tuple(of_item), files=()) for name, of_item in grouped.items()],
        options={},
        side_files=_sides(model),
        ignored={},
        moejax_version=moejax.__version__,
    )


def _sides(model: Model) -> dict[str, bytes]:
    """Files beside the weights."""
    found: dict[str, bytes] = {}
    if model.folder is not None:
        if not model.folder.is_dir():
            raise ValueError(f"{model.folder} is gone, where config.json and tokenizer of this model were: put it back")
        for path, why in links_out(model.folder).items():
            _logger.warning("%s %s, so it was left out", path, why)
        found = {name: side_bytes(path, model.dtype) for name, path in side_files(model.folder).items()}
    if "config.json" not in found:
        raw = family_of(model.config).hf_config(model.config, model.dtype)
        found["config.json"] = (json.dumps(raw, indent=2) + "\n").encode()
    return found


@dataclass(frozen=True, kw_only=True)
class _ModelTensors:
    """A model's weights as a `TensorSource`, each fetched from the devices when it is read."""

    model: Model
    names: Mapping[str, LogicalTensor]
    read_bytes: ByteCounter = field(default_factory=ByteCounter)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        where, dtype = Path("the model in memory"), _WORDS[self.model.dtype]
        return {
            path: TensorInfo(name=path, shape=tensor.weight.shape, dtype=dtype, file=where, stored_name=path)
            for path, tensor in self.names.items()
        }

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def read_into(self, name: str, out: np.ndarray, index: Index | None = None, *, allow_nan: bool = False) -> None:
        values = np.asarray(self.model.get(name))
        if not all_finite(values):
            count = int(np.count_nonzero(~np.isfinite(values)))
            raise CheckpointError(
                f"weight {name!r} holds {count} NaN or infinite values of {values.size}, which no load accepts: "
                "mend it with model.with_params"
            )
        out[...] = values if index is None else values[index]
        self.read_bytes.add(out.nbytes)
