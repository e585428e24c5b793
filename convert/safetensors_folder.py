"""A Hugging Face checkpoint folder: `model.safetensors`, or shards named by `model.safetensors.index.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
import numpy.typing as npt

from moejax._convert.contents import other_kind
from moejax._convert.errors import CheckpointError, listed, shown
from moejax._convert.files import DOWNLOADED, Advice, opened, read_json, regular
from moejax._convert.reading import ByteCounter
from moejax._convert.safetensors_file import SafetensorsFiles
from moejax._convert.tensor_info import Index, TensorInfo, float_dtype, ranges_of

STEM = "model"
SINGLE, INDEX = f"{STEM}.safetensors", f"{STEM}.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class SafetensorsFolder:
    """The tensors of a checkpoint by name. Holds no weights; threads may read at the same time.

    read_bytes: how many bytes of tensors were read from the files so far.
    unread_index: an index beside the single file that holds all that it names, in other files, which are not read.
    """

    folder: Path
    tensors: Mapping[str, TensorInfo]
    files: SafetensorsFiles = field(repr=False, compare=False)
    read_bytes: ByteCounter = field(default_factory=ByteCounter, repr=False, compare=False)
    unread_index: Path | None = None

    @classmethod
    def open(cls, folder: Path | str, advice: Advice = DOWNLOADED, stem: str = STEM) -> Self:
        """Reads the headers, and nothing else, of the safetensors files in `folder`.

        advice: what helps where one of them is damaged.  stem: how the name of the single file, or of the index,
        begins.

        Raises:
            CheckpointError: when there are none, or one of them is missing, damaged or contradicts the index.
        """
        folder, files = Path(folder), SafetensorsFiles(advice)
        found = _listing(folder)
        single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
        whole = files.tensors(regular(found[single])) if single in found else None
        unread = None
        if index in found:
            weight_map = _read_index(found[index], advice)
            if whole is not None and single not in weight_map.values():
                _check_whole(found[single], found[index], weight_map, whole, advice)
                tensors, unread = whole, found[index]
            else:
                tensors = _sharded(files, found, found[index], weight_map, advice)
        elif whole is not None:
            tensors = whole
        else:
            lacks = f"{folder} lacks {SINGLE} or {INDEX}; {advice.damaged}"
            raise CheckpointError(_nothing_to_read(folder, found) if advice is DOWNLOADED else lacks)
        if not tensors:
            raise CheckpointError(f"{found.get(single, folder)} holds no tensors; {advice.made}")
        return cls(folder=folder, tensors=MappingProxyType(tensors), files=files, unread_index=unread)

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors, as they are in the files."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def read(self, name: str, dtype: npt.DTypeLike | None = None, *, allow_nan: bool = False) -> np.ndarray:
        """One tensor as a new array of `dtype` (None: the file's).

        The memory is the array's own, never a mapped file's: JAX on CPU may alias it for as long as it lives.

        Raises: what `read_into` raises.
        """
        info = self._info(name)
        out = np.empty(info.shape, float_dtype(info) if dtype is None else dtype)
        self.read_into(name, out, allow_nan=allow_nan)
        return out

    def read_into(self, name: str, out: np.ndarray, index: Index | None = None, *, allow_nan: bool = False) -> None:
        """Reads one tensor, or the part of it at `index`, into `out`, rounding to its dtype.

        `out` has any float dtype, the shape of what is read, and is C-contiguous (such as a slot `stack[e]`). Only the
        bytes of the part are read. Temporary memory is a few MB, however large the tensor.

        Raises:
            CheckpointError: when there is no such tensor, the file has changed, the dtype is none of bf16, f16, f32 and
                f64, a value is NaN or infinite (unless `allow_nan`), or a finite value is too large for the dtype of
                `out`. `out` then holds a part of the tensor.
            ValueError: when `out` is not such an array, or `index` not inside the tensor.
        """
        info = self._info(name)
        self.read_bytes.add(self.files.read_into(info, ranges_of(info, index), out, allow_nan=allow_nan))

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder} holds no tensor {name!r}, only {listed(self.tensors)}")
        return self.tensors[name]


def _listing(folder: Path) -> dict[str, Path]:
    """The entries of `folder` by name. Whatever an index names is looked up here and never joined to a path."""
    try:
        return {entry.name: entry for entry in sorted(folder.iterdir())}
    except NotADirectoryError as error:
        raise CheckpointError(f"{folder} is a file; give the folder that holds it and config.json") from error
    except OSError as error:
        raise CheckpointError(f"cannot read the folder {folder}: {error.strerror}; check the path") from error


def _read_index(index: Path, advice: Advice) -> dict[str, str]:
    """The index's map from tensor to file name; a name that would lead out of the folder is refused."""
    with opened(regular(index)) as stream:
        weight_map = read_json(index, stream, advice.damaged).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: weight_map is {shown(weight_map)}, expected tensor names with files; {advice.made}"
        )
    for tensor, name in weight_map.items():
        where = f"{index}: tensor {tensor!r} is in {shown(name)}"
        if isinstance(name, str) and ("/" in name or "\\" in name or name.startswith("..")):
            raise CheckpointError(f"{where}, which leaves the folder; expected a file inside it: {advice.made}")
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise CheckpointError(f"{where}, expected a .safetensors file; {advice.made}")
    return weight_map


def _check_whole(
    single: Path, index: Path, weight_map: Mapping[str, str], held: Mapping[str, TensorInfo], advice: Advice
) -> None:
    """Refuses a single file beside an index of other files, unless it holds all that these do: transformers reads it.

    In a converted folder, one of the two is not of the conversion."""
    lacks = sorted(weight_map.keys() - held.keys())
    if lacks or advice is not DOWNLOADED:
        raise CheckpointError(
            f"{single.parent} holds {single.name} and also {index.name}, which does not name it: two checkpoints; "
            f"remove one{f' (the single file lacks {listed(lacks)})' if lacks else ''}"
        )


def _sharded(
    files: SafetensorsFiles, found: Mapping[str, Path], index: Path, weight_map: Mapping[str, str], advice: Advice
) -> dict[str, TensorInfo]:
    """The tensors of all shards, which must be exactly those of the index; of two with one name, it says which."""
    shards = sorted(set(weight_map.values()))
    if missing := [shard for shard in shards if shard not in found]:
        raise CheckpointError(
            f"{index} names {len(shards)} files, of which {len(missing)} are missing: {listed(missing)}; "
            f"{'download them' if advice is DOWNLOADED else advice.damaged}"
        )
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        held = files.tensors(regular(found[shard]))
        if lost := [name for name, file in weight_map.items() if file == shard and name not in held]:
            raise CheckpointError(
                f"{found[shard]} does not hold {listed(lost)}, but {index.name} says so; {advice.damaged}"
            )
        if unnamed := [name for name in held if name not in weight_map]:
            raise CheckpointError(
                f"{found[shard]} holds {listed(unnamed)}, which {index.name} does not name; {advice.damaged}"
            )
        tensors |= {name: info for name, info in held.items() if weight_map[name] == shard}
    return tensors


def _nothing_to_read(folder: Path, files: Mapping[str, Path]) -> str:
    """Why a folder without any of the two files cannot be read."""
    if (kind := other_kind(folder)) is not None:
        return kind
    expected = f"expected {SINGLE} or {INDEX}"
    if found := [name for name in files if name.endswith(".safetensors")]:
        return f"{folder} holds {listed(found)} but no index; {expected}: download the index, or rename a single file"
    return f"{folder} holds {f'only {listed(files)}' if files else 'nothing'}; {expected}: download the weights"
