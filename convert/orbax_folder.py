"""A converted folder: arrays in Orbax checkpoints under `weights/`, named by `manifest.json`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
import numpy.typing as npt

from convert.chunks import read_chunks
from convert.dtypes import FLOAT_DTYPES
from convert.errors import CheckpointError, listed
from convert.header import TensorInfo
from convert.manifest import MANIFEST, ArrayEntry, Manifest, read_manifest
from convert.reading import WIDER, Index, all_finite
from convert.safetensors_folder import ByteCounter

WEIGHTS = "weights"
_STEP_BYTES = 1 << 20  # of the temporary memory in which values are converted


@dataclass(frozen=True, kw_only=True)
class OrbaxFolder:
    """The arrays of a finished conversion by name. Holds no weights; threads may read at the same time.

    Every chunk that is read is compared with its checksum, for a part of an array, too.
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
            raise CheckpointError(f"{folder / WEIGHTS} lacks {listed(missing)}; convert again with --restart")
        tensors = {name: _info(name, entry, items[entry.item]) for name, entry in manifest.arrays.items()}
        return cls(folder=folder, manifest=manifest, tensors=MappingProxyType(tensors))

    @property
    def total_bytes(self) -> int:
        """Bytes of all arrays, as they are stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def read(self, name: str, dtype: npt.DTypeLike | None = None, *, allow_nan: bool = False) -> np.ndarray:
        """One array as a new one of `dtype` (None: the stored one), with the errors of `read_into`."""
        info = self._info(name)
        out = np.empty(info.shape, FLOAT_DTYPES[info.dtype] if dtype is None else dtype)
        self.read_into(name, out, allow_nan=allow_nan)
        return out

    def read_into(self, name: str, out: np.ndarray, index: Index | None = None, *, allow_nan: bool = False) -> None:
        """Reads an array, or its part `index` (slices of step 1), into `out`: any float dtype, C-contiguous.

        Only the chunks that overlap are read. NaN and infinity are let through where the conversion let them through.

        Raises:
            CheckpointError: when it is missing, damaged, holds NaN or infinity (unless `allow_nan`), or a finite value
                is too large for the dtype of `out`. `out` then holds a part of the array, or damaged values.
            ValueError: when `out` is not such an array.
        """
        info, entry = self._info(name), self.manifest.arrays[name]
        shape = info.shape if index is None else _shape(info.shape, index)
        _check_target(name, out, shape)
        stored = FLOAT_DTYPES[info.dtype]
        values = out if out.dtype == stored else np.empty(out.shape, stored)
        index = tuple(slice(0, size) for size in shape) if index is None else index
        count = read_chunks(info.file / entry.key, info.shape, info.dtype, values, index, entry.chunks)
        self.read_bytes.add(count)
        _check_and_convert(info, values, out, allow_nan=allow_nan or not entry.finite)

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder} holds no array {name!r}, only {listed(self.tensors)}")
        return self.tensors[name]


def _info(name: str, entry: ArrayEntry, item: Path) -> TensorInfo:
    nbytes = math.prod(entry.shape) * FLOAT_DTYPES[entry.dtype].itemsize
    return TensorInfo(name=name, shape=entry.shape, dtype=entry.dtype, file=item, start=0, stop=nbytes)


def _shape(shape: tuple[int, ...], index: Index) -> tuple[int, ...]:
    if len(index) != len(shape) or any(part.step not in (None, 1) for part in index):
        raise ValueError(f"expected a slice of step 1 for each of {len(shape)} axes, got {index}")
    return tuple(len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True))


def _check_target(name: str, out: np.ndarray, shape: tuple[int, ...]) -> None:
    if out.shape != shape:
        raise ValueError(f"what is read of array {name!r} has shape {shape}, the array to fill has {out.shape}")
    if out.dtype not in FLOAT_DTYPES.values() or not out.flags.c_contiguous or not out.flags.writeable:
        names = ", ".join(dtype.name for dtype in FLOAT_DTYPES.values())
        raise ValueError(f"the array to fill with {name!r} must be writable, C-contiguous and one of {names}")


def _check_and_convert(info: TensorInfo, values: np.ndarray, out: np.ndarray, *, allow_nan: bool) -> None:
    """Refuses NaN and infinity in `values`, and copies them to `out` where it is another array."""
    if not allow_nan and not all_finite(values):
        raise CheckpointError(
            f"{info.file}: array {info.name!r} holds NaN or infinite values, which it did not when it was converted; "
            "convert again with --restart"
        )
    if values is out:
        return
    flat, target = values.reshape(-1), out.reshape(-1)
    step = _STEP_BYTES // values.itemsize
    with np.errstate(all="ignore"):  # what does not fit becomes infinite, and is found
        for begin in range(0, flat.size, step):
            part, converted = flat[begin : begin + step], target[begin : begin + step]
            np.copyto(converted, part, casting="unsafe")
            if not all_finite(converted) and (np.isinf(converted) & np.isfinite(part)).any():
                raise CheckpointError(
                    f"{info.file}: array {info.name!r} holds values that are too large for {out.dtype.name}; "
                    f"use {WIDER[out.dtype.name]}"
                )
