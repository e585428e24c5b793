"""manifest.json: what a finished conversion holds. It is written last, so a folder that has one is complete."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from moejax._convert.dtypes import FLOAT_DTYPES, fits_numpy
from moejax._convert.errors import CheckpointError, shown
from moejax._convert.files import RECONVERT, opened, read_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 3
_READ_VERSIONS = (2, 3)  # 2: arrays in zarr version 2, with checksums of their chunks here
Format = Literal["orbax", "safetensors"]
FORMATS: tuple[Format, ...] = get_args(Format)
_FORMATS: Mapping[str, Format] = {f"moejax-{name}": name for name in FORMATS}
_NAMES = {name: word for word, name in _FORMATS.items()}
_OURS, _START_BYTES = b'"moejax-', 100  # how ours begins, even when it is damaged later on
# What may stand for an item, a key or a file: nothing that leads out of the folder, or hides in it.
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_CHECKSUM = re.compile(r"crc32:[0-9a-f]{8}")


@dataclass(frozen=True, kw_only=True)
class ArrayEntry:
    """One array: `key` of the Orbax checkpoint `item`, or the tensor `key` of the safetensors file `item`.

    dtype: as safetensors spells it.  finite: False where NaN and infinity were let through.
    """

    item: str
    key: str
    shape: tuple[int, ...]
    dtype: str
    checksum: str
    finite: bool = True


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is in a converted folder, and what it was made from.

    source_files: SHA-256 of the files it was made from.  options: those that change the result.  ignored: tensors of
    the source that are not here, with the reason.  files: SHA-256 of the other files of the folder.
    """

    format: Format
    moejax_version: str
    source_format: Format
    source_files: Mapping[str, str]
    options: Mapping[str, str]
    ignored: Mapping[str, str]
    arrays: Mapping[str, ArrayEntry]
    files: Mapping[str, str]

    def to_json(self) -> bytes:
        """The file's bytes: the same for the same conversion, whenever it ran and however often it was stopped."""
        raw: dict[str, Any] = {"format": _NAMES[self.format], "format_version": FORMAT_VERSION}
        raw |= {
            key: value if isinstance(value, str) else dict(value) for key, value in vars(self).items() if key not in raw
        }
        raw["arrays"] = {name: vars(entry) for name, entry in self.arrays.items()}
        return (json.dumps(raw, indent=1, ensure_ascii=False) + "\n").encode()


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished conversion; None where there is none, or `manifest.json` is another program's.

    Raises:
        CheckpointError: when it is damaged, or of a version that this moejax does not know.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    with opened(path) as stream:
        if _OURS not in stream.peek(_START_BYTES)[:_START_BYTES]:
            return None
        raw = read_json(path, stream, RECONVERT)
    if not isinstance(word := raw.get("format"), str) or word not in _FORMATS:
        return None
    if (version := raw.get("format_version")) not in _READ_VERSIONS:
        raise CheckpointError(
            f"{path} has format_version {shown(version)}, this moejax reads {' and '.join(map(str, _READ_VERSIONS))}; "
            "use the moejax that wrote it"
        )
    arrays = {name: _entry(path, name, entry) for name, entry in _object(path, raw, "arrays").items()}
    if not arrays:
        raise CheckpointError(f"{path} lists no arrays; {RECONVERT}")
    source_format = raw.get("source_format")
    return Manifest(
        format=_FORMATS[word],
        moejax_version=str(raw.get("moejax_version")),
        source_format="orbax" if source_format == "orbax" else "safetensors",
        source_files=_strings(path, raw, "source_files"),
        options=_strings(path, raw, "options"),
        ignored=_strings(path, raw, "ignored"),
        arrays=arrays,
        files=_strings(path, raw, "files"),
    )


def _object(path: Path, raw: Mapping[str, object], key: str) -> dict[str, object]:
    if not isinstance(value := raw.get(key), dict):
        raise CheckpointError(f"{path}: {key} is {shown(value)}, expected an object; {RECONVERT}")
    return value


def _strings(path: Path, raw: Mapping[str, object], key: str) -> dict[str, str]:
    found = {name: value for name, value in _object(path, raw, key).items() if isinstance(value, str)}
    if len(found) < len(_object(path, raw, key)):
        raise CheckpointError(f"{path}: {key} is {shown(raw[key])}, expected an object of strings; {RECONVERT}")
    return found


def _entry(path: Path, name: str, raw: object) -> ArrayEntry:
    where = f"{path}: array {name!r}"
    if not isinstance(raw, dict) or raw.keys() - {"chunks"} != set(ArrayEntry.__annotations__):
        raise CheckpointError(
            f"{where} is described by {shown(raw)}, expected {', '.join(ArrayEntry.__annotations__)}; {RECONVERT}"
        )
    for key in ("item", "key"):
        if not isinstance(raw[key], str) or not _SAFE_NAME.fullmatch(raw[key]):
            raise CheckpointError(
                f"{where} has the {key} {shown(raw[key])}, expected a name inside the folder; {RECONVERT}"
            )
    shape = raw["shape"]
    sizes = isinstance(shape, list) and all(type(size) is int and 0 <= size < 2**63 for size in shape)
    if not sizes or not fits_numpy(shape):
        raise CheckpointError(f"{where} has shape {shown(shape)}, expected sizes that memory could hold; {RECONVERT}")
    if not isinstance(raw["dtype"], str) or raw["dtype"] not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{where} has dtype {shown(raw['dtype'])}, expected {', '.join(FLOAT_DTYPES)}; {RECONVERT}"
        )
    if not isinstance(raw["checksum"], str) or not _CHECKSUM.fullmatch(raw["checksum"]):
        raise CheckpointError(
            f"{where} has the checksum {shown(raw['checksum'])}, expected crc32:xxxxxxxx; {RECONVERT}"
        )
    if not isinstance(raw["finite"], bool):
        raise CheckpointError(f"{where} has finite {shown(raw['finite'])}, expected true or false; {RECONVERT}")
    fields = {key: raw[key] for key in ArrayEntry.__annotations__}
    return ArrayEntry(**{**fields, "shape": tuple(shape)})
