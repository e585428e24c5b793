"""Writes a Hugging Face folder: safetensors files of a size, and their index.

The place of every tensor is known before the first is written. So files are made at their full size in the work folder,
filled in any order, and renamed into the folder when all are full. The library's own writer needs all tensors of a file
in memory at once (docs/decisions.md, "Conversion"); it is what reads the files back.
"""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from moejax._convert.durable import move, remove, write_atomically
from moejax._convert.errors import CheckpointError, shown
from moejax._convert.files import CONVERTED, RECONVERT
from moejax._convert.items import ArrayPlan, Item
from moejax._convert.journal import WORK
from moejax._convert.manifest import Format
from moejax._convert.previous import FILES, previous_weights
from moejax._convert.safetensors_file import LENGTH_BYTES, SafetensorsFiles
from moejax._convert.safetensors_folder import INDEX, SINGLE, SafetensorsFolder
from moejax._convert.tensor_info import TensorInfo, ranges_of

# transformers reads a file only when it says which framework's tensors are in it.
_METADATA = {"format": "pt"}
_ALIGNMENT = 8


@dataclass(frozen=True)
class Shard:
    """One file: its name, the bytes before the tensors, and where each tensor is in it."""

    name: str
    head: bytes
    tensors: Mapping[str, tuple[ArrayPlan, int]]
    size: int


@dataclass(frozen=True, kw_only=True)
class SafetensorsTarget:
    """See `Target`. arrays: all of them, in the order of the files.

    shard_bytes: the most that a file's tensors take.
    """

    folder: Path
    arrays: tuple[ArrayPlan, ...]
    shard_bytes: int
    format: Format = "safetensors"
    _written: SafetensorsFiles = field(default_factory=lambda: SafetensorsFiles(CONVERTED), repr=False, compare=False)

    @cached_property
    def shards(self) -> Mapping[str, Shard]:
        """The file of every tensor."""
        groups = _groups(self.arrays, self.shard_bytes)
        count = len(groups)
        names = [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        made = [_shard(name, group) for name, group in zip(names, groups, strict=True)]
        return {name: shard for shard in made for name in shard.tensors}

    def prepare(self, done: Collection[str]) -> None:
        if not done:  # a file with its final name is then another conversion's, whose removal was stopped
            for path in previous_weights(self.folder, ["safetensors"]):
                remove(path)
        for shard in self._files():
            path = self._path(shard)
            if path.is_symlink():  # another's file, which is not written to
                remove(path)
            if path.exists():
                _mend(path, shard)
                continue
            path = self._unfinished / shard.name
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                file.write(shard.head)
                file.truncate(shard.size)
                file.flush()
                os.fsync(file.fileno())
            move(partial, path)

    def write(self, item: Item, arrays: Mapping[str, np.ndarray]) -> None:
        for shard in {self.shards[name].name: self.shards[name] for name in arrays}.values():
            with self._path(shard).open("r+b") as file:
                for name in sorted(arrays.keys() & shard.tensors.keys(), key=lambda name: shard.tensors[name][1]):
                    file.seek(shard.tensors[name][1])
                    file.write(arrays[name].reshape(-1).view(np.uint8).data)
                file.flush()
                os.fsync(file.fileno())

    def read_back(self, item: Item, memory: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for array, out in zip(item.arrays, memory, strict=True):
            path = self._path(self.shards[array.target])
            info = TensorInfo(
                name=array.target, shape=array.shape, dtype=array.dtype, file=path, stored_name=array.target
            )
            self._written.check_described(info)
            self._written.read_into(info, ranges_of(info, None), out, allow_nan=True)
            yield out

    def check_listing(self) -> None:
        found = SafetensorsFolder.open(self.folder, CONVERTED)
        for shard in self._files():
            path = self.folder / shard.name
            if (metadata := found.files.metadata(path)) != _METADATA:
                raise CheckpointError(f"{path} has the metadata {shown(metadata)}, expected {_METADATA}; {RECONVERT}")
        places = {name: tensor.file.name for name, tensor in found.tensors.items()}
        if places != {name: shard.name for name, shard in self.shards.items()}:
            raise CheckpointError(f"{self.folder} does not hold the tensors that were converted; {RECONVERT}")

    def publish(self) -> None:
        for shard in self._files():
            if (path := self._unfinished / shard.name).exists():
                move(path, self.folder / shard.name)
        remove(self._unfinished)
        if len(self._files()) > 1:
            total = sum(array.nbytes for array in self.arrays)
            weight_map = {name: shard.name for name, shard in sorted(self.shards.items())}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            raw = (json.dumps(index, indent=2) + "\n").encode()
            write_atomically(self.folder / INDEX, raw, scratch=self.folder / WORK)

    def place(self, array: ArrayPlan) -> tuple[str, str]:
        return self.shards[array.target].name, array.target

    def _files(self) -> list[Shard]:
        return list({shard.name: shard for shard in self.shards.values()}.values())

    def _path(self, shard: Shard) -> Path:
        """Where a file is now: in the folder once it was published."""
        path = self._unfinished / shard.name
        return path if path.exists() else self.folder / shard.name

    @property
    def _unfinished(self) -> Path:
        return self.folder / WORK / FILES


def _mend(path: Path, shard: Shard) -> None:
    """Gives a file that is there the head and the size that it has to have: what is below it is compared later."""
    with path.open("r+b") as file:
        if file.read(len(shard.head)) != shard.head or path.stat().st_size != shard.size:
            file.seek(0)
            file.write(shard.head)
            file.truncate(shard.size)
            file.flush()
            os.fsync(file.fileno())


def _groups(arrays: Sequence[ArrayPlan], shard_bytes: int) -> list[list[ArrayPlan]]:
    """Arrays in order, a file's at a time; one that is larger than a file has a file of its own."""
    groups: list[list[ArrayPlan]] = [[]]
    room = shard_bytes
    for array in arrays:
        if groups[-1] and array.nbytes > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(array)
        room -= array.nbytes
    return groups


def _shard(name: str, arrays: Sequence[ArrayPlan]) -> Shard:
    header: dict[str, object] = {"__metadata__": _METADATA}
    offsets: dict[str, int] = {}
    end = 0
    for array in sorted(arrays, key=lambda array: -array.numpy_dtype.itemsize):  # widest first keeps all aligned
        offsets[array.target], end = end, end + array.nbytes
        offset = [offsets[array.target], end]
        header[array.target] = {"dtype": array.dtype, "shape": list(array.shape), "data_offsets": offset}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _ALIGNMENT)  # as the library pads it
    head = len(raw).to_bytes(LENGTH_BYTES, "little") + raw
    tensors = {array.target: (array, len(head) + offsets[array.target]) for array in arrays}
    return Shard(name=name, head=head, tensors=tensors, size=len(head) + end)
