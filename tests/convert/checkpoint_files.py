"""Checkpoint files for the tests, written byte by byte so that each may be wrong in a way of its own."""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from moejax._convert import CheckpointError, SafetensorsFolder

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def file_bytes(header: Mapping[str, object] | bytes, data: bytes = b"") -> bytes:
    """A safetensors file with this header (JSON, or its raw bytes) before this data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def tensor_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A valid safetensors file with `tensors`, in this order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        header[name] = entry(NAMES[array.dtype], list(array.shape), len(data), len(data) + array.nbytes)
        data += array.tobytes()
    return file_bytes(header, data)


def write_single(folder: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    (folder / SINGLE).write_bytes(tensor_bytes(tensors))
    return folder


def write_sharded(folder: Path, shards: Mapping[str, Mapping[str, np.ndarray]]) -> Path:
    """Shards by file name, and the index that names their tensors."""
    for file, tensors in shards.items():
        (folder / file).write_bytes(tensor_bytes(tensors))
    write_index(folder, {name: file for file, tensors in shards.items() for name in tensors})
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def refusal(folder: Path) -> str:
    """The one-line message with which `folder` is refused, its path written as FOLDER."""
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFolder.open(folder)
    message = str(caught.value)
    assert message.isprintable()
    return message.replace(str(folder), "FOLDER")


def assert_refused(folder: Path, *facts: str) -> None:
    """`folder` is refused, and the message tells all of these."""
    message = refusal(folder)
    assert all(fact in message for fact in facts), message
