"""Writes a Hugging Face folder: safetensors files of a size, and their index.

The place of every tensor is known before the first is written. So files are made at their full size in the work folder,
filled in any order, and renamed into the folder when all are full.
"""

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from convert.checksums import Sums
from convert.direct import ALIGNMENT, writer
from convert.durable import move, remove, write_atomically
from convert.errors import CheckpointError
from convert.header import LENGTH_BYTES, TensorInfo
from convert.items import ArrayPlan, Item
from convert.journal import WORK
from convert.manifest import Format
from convert.reading import read_into
from convert.safetensors_folder import INDEX, SINGLE

# transformers reads a file only when it says which framework's tensors are in it.
_METADATA = {"format": "pt"}
_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


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

    @cached_property
    def shards(self) -> Mapping[str, Shard]:
        """The file of every tensor."""
        groups = _groups(self.arrays, self.shard_bytes)
        count = len(groups)
        names = [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        made = [_shard(name, group) for name, group in zip(names, groups, strict=True)]
        return {name: shard for shard in made for name in shard.tensors}

    def clear(self) -> None:
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name):
                remove(path)

    def prepare(self, done: Collection[str]) -> None:
        if not done:  # a file with its final name is then another conversion's, whose removal was stopped
            self.clear()
        for shard in self._files():
            path = self._unfinished / shard.name
            if (self.folder / shard.name).exists() or path.exists():
                continue
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                file.write(shard.head)
                file.truncate(shard.size)
                file.flush()
                os.fsync(file.fileno())
            move(partial, path)

    def write(self, item: Item, arrays: Mapping[str, np.ndarray]) -> Mapping[str, Sums]:
        for shard in {self.shards[name].name: self.shards[name] for name in arrays}.values():
            with writer(self._path(shard), new=False) as file:
                for name in arrays.keys() & shard.tensors.keys():
                    file.write(arrays[name], shard.tensors[name][1])
                os.fsync(file.descriptor)
        return {}

    def read_into(self, array: ArrayPlan, out: np.ndarray) -> None:
        shard = self.shards[array.target]
        start = shard.tensors[array.target][1]
        info = TensorInfo(
            name=array.target,
            shape=array.shape,
            dtype=array.dtype,
            file=self._path(shard),
            start=start,
            stop=start + array.nbytes,
        )
        if info.file.stat().st_size != shard.size:
            raise CheckpointError(f"{info.file} has {info.file.stat().st_size} bytes, expected {shard.size}")
        read_into(info, out, allow_nan=True)

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
        return self.folder / WORK / "files"


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
    # The first tensor begins at a page, as do those after it whose sizes are whole pages: so they are written quickly.
    raw += b" " * (-(LENGTH_BYTES + len(raw)) % ALIGNMENT)
    head = len(raw).to_bytes(LENGTH_BYTES, "little") + raw
    tensors = {array.target: (array, len(head) + offsets[array.target]) for array in arrays}
    return Shard(name=name, head=head, tensors=tensors, size=len(head) + end)
