"""A converted folder: arrays in Orbax checkpoints under `weights/`, named by `manifest.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
import numpy.typing as npt

from moejax._convert.checksums import array_checksum
from moejax._convert.errors import CheckpointError, listed
from moejax._convert.files import RECONVERT
from moejax._convert.manifest import MANIFEST, Manifest, read_manifest
from moejax._convert.previous import WEIGHTS
from moejax._convert.reading import BLOCK_BYTES, ByteCounter, CheckedCopy
from moejax._convert.tensor_info import Index, TensorInfo, float_dtype, ranges_of
from moejax._convert.zarr_array import read_array


@dataclass(frozen=True, kw_only=True)
class OrbaxFolder:
    """The arrays of a finished conversion by name. Holds no weights; threads may read at the same time.

    read_bytes: how many bytes of chunks were read so far.
    """

    folder: Path
    manifest: Manifest
    tensors: Mapping[str, TensorInfo]
    read_bytes: ByteCounter = field(default_factory=ByteCounter, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Reads the manifest of `folder`, and nothing else.

        Raises:
            CheckpointError: when there is none, it is damaged, or a checkpoint that it names is missing.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None or manifest.format != "orbax":
            raise CheckpointError(f"{folder} holds no converted Orbax checkpoint ({MANIFEST}); give the folder of one")
        items = {entry.item: folder / WEIGHTS / entry.item for entry in manifest.arrays.values()}
        if missing := [item for item, path in items.items() if not path.is_dir()]:
            raise CheckpointError(f"{folder / WEIGHTS} lacks {listed(missing)}; {RECONVERT}")
        tensors = {
            name: TensorInfo(
                name=name, shape=entry.shape, dtype=entry.dtype, file=items[entry.item], stored_name=entry.key
            )
            for name, entry in manifest.arrays.items()
        }
        return cls(folder=folder, manifest=manifest, tensors=MappingProxyType(tensors))

    @property
    def total_bytes(self) -> int:
        """Bytes of all arrays, as they are stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def read(self, name: str, dtype: npt.DTypeLike | None = None, *, allow_nan: bool = False) -> np.ndarray:
        """One array as a new one of `dtype` (None: the stored one), with the errors of `read_into`."""
        info = self._info(name)
        out = np.empty(info.shape, float_dtype(info) if dtype is None else dtype)
        self.read_into(name, out, allow_nan=allow_nan)
        return out

    def read_into(self, name: str, out: np.ndarray, index: Index | None = None, *, allow_nan: bool = False) -> None:
        """Reads an array, or its part `index` (slices of step 1), into `out`: any float dtype, C-contiguous.

        Only the chunks that overlap are read, and each is compared with its checksum; so is an array that is read
        whole. Where `out` has another dtype than the array, the part is in memory twice. NaN and infinity are let
        through where the conversion let them through.

        Raises:
            CheckpointError: when it is missing, damaged, holds NaN or infinity (unless `allow_nan`), or a finite value
                is too large for the dtype of `out`. `out` then holds a part of the array, or damaged values.
            ValueError: when `out` is not such an array, or `index` not inside the array.
        """
        info, entry = self._info(name), self.manifest.arrays[name]
        ranges, stored = ranges_of(info, index), float_dtype(info)
        copy = CheckedCopy(info, ranges, out, allow_nan=allow_nan or not entry.finite)
        values = out if out.dtype == stored else np.empty(out.shape, stored)
        self.read_bytes.add(read_array(info.file / info.stored_name, info, ranges, values))
        if out.shape == info.shape and (got := array_checksum(values)) != entry.checksum:
            raise CheckpointError(
                f"{info.file / info.stored_name} was damaged after it was converted: its checksum is {got}, "
                f"{MANIFEST} says {entry.checksum}; {RECONVERT}"
            )
        flat, step = values.reshape(-1), BLOCK_BYTES // stored.itemsize
        for begin in range(0, flat.size, step):
            copy.add(flat[begin : begin + step])
        copy.finish(f"it did not when it was converted: {RECONVERT}")

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder} holds no array {name!r}, only {listed(self.tensors)}")
        return self.tensors[name]
