"""What one safetensors file may say about itself, and every way in which it may lie."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from moejax._convert import CheckpointError, SafetensorsFolder, TensorInfo
from tests.convert.checkpoint_files import DTYPES, SINGLE, entry, file_bytes, refusal, tensor_bytes

FILE = f"FOLDER/{SINGLE}"


def opened(folder: Path, raw: bytes) -> Mapping[str, TensorInfo]:
    (folder / SINGLE).write_bytes(raw)
    return SafetensorsFolder.open(folder).tensors


def test_reads_what_the_reference_implementation_writes(tmp_path: Path) -> None:
    arrays = {
        name: np.arange(6, dtype=np.float32).reshape(shape).astype(dtype)
        for (name, dtype), shape in zip(DTYPES.items(), [(6,), (2, 3), (3, 1, 2), (1, 6)], strict=True)
    } | {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 4), np.float16)}
    save_file(arrays, tmp_path / SINGLE, metadata={"format": "pt"})
    checkpoint = SafetensorsFolder.open(tmp_path)
    assert checkpoint.tensors.keys() == arrays.keys()
    assert checkpoint.total_bytes == sum(array.nbytes for array in arrays.values())
    for name, array in arrays.items():
        info = checkpoint.tensors[name]
        assert (info.shape, info.nbytes, info.file) == (array.shape, array.nbytes, tmp_path / SINGLE)
        read = checkpoint.read(name)
        assert read.dtype == array.dtype
        assert read.tobytes() == array.tobytes()


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    size = 1 << 38  # 275 GB without a block on the disk: reading it would be noticed
    raw = file_bytes({"a": entry("BF16", [size // 2], 0, size)})
    with (tmp_path / SINGLE).open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + size)
    assert SafetensorsFolder.open(tmp_path).total_bytes == size


ONE = {"a": entry("F32", [1], 0, 4)}
NAMED = f"{FILE}: tensor 'a'"
UNSOUND = f"{FILE} is no sound safetensors file"
# What is wrong, the file, how the message begins, and what else it has to tell.
LIES: list[tuple[str, bytes, str, tuple[str, ...]]] = [
    ("empty", b"", f"{FILE} is truncated", ("0 bytes",)),
    (
        "git-lfs",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4892809584\n",
        f"{FILE} is a git-lfs pointer",
        ("git lfs pull",),
    ),
    ("web page", b"<!DOCTYPE html><html>\n" * 9, f"{FILE} is no safetensors file", ("<!DOCTYPE html>",)),
    ("zeros", bytes(64), f"{FILE} is no safetensors file", ()),
    ("huge header", (10**8 + 1).to_bytes(8, "little") + b"{}", FILE, ("100000001", "100000000")),
    ("truncated header", file_bytes(ONE)[:40], f"{FILE} is truncated", ("40 bytes", "byte 69")),
    ("no JSON", file_bytes(b"{]"), FILE, ("JSON",)),
    ("no UTF-8", file_bytes(b'{"\xff": 1}'), FILE, ("utf-8",)),
    ("surrogate", file_bytes(b'{"\\ud800": 1}'), FILE, ("utf-8",)),
    ("nested", file_bytes(b'{"a":' + b"[" * 10**5), FILE, ("nested",)),
    ("long number", file_bytes(b'{"a":' + b"1" * 5000 + b"}"), FILE, ("JSON",)),
    ("key twice", file_bytes(b'{"a":1,"b":1,"a":1}'), FILE, ("'a'", "twice")),
    ("list", file_bytes(b" [1] "), FILE, ("list",)),
    ("no tensors", file_bytes({"__metadata__": {}}), f"{FILE} holds no tensors", ()),
    ("metadata", file_bytes({"__metadata__": {"n": 1}}), UNSOUND, ()),
    ("no entry", file_bytes({"a": [1]}), UNSOUND, ()),
    ("unknown dtype", file_bytes({"a": entry("Q4", [1], 0, 4)}), UNSOUND, ("Q4",)),
    ("no dtype", file_bytes({"a": ONE["a"] | {"dtype": ["F32"]}}), UNSOUND, ()),
    ("negative size", file_bytes({"a": entry("F32", [-1, -1], 0, 4)}), UNSOUND, ("-1",)),
    ("true size", file_bytes({"a": ONE["a"] | {"shape": [True]}}), UNSOUND, ("true",)),
    ("real size", file_bytes({"a": ONE["a"] | {"shape": [1.0]}}), UNSOUND, ("1.0",)),
    ("no shape", file_bytes({"a": ONE["a"] | {"shape": 1}}), UNSOUND, ()),
    ("65 axes", file_bytes({"a": entry("F32", [1] * 65, 0, 4)}, bytes(4)), NAMED, ("numpy",)),
    ("empty, yet too large for numpy", file_bytes({"a": entry("F32", [0, 2**61], 0, 0)}), NAMED, (str(2**61),)),
    ("offset", file_bytes({"a": ONE["a"] | {"data_offsets": [4]}}), UNSOUND, ()),
    ("backwards", file_bytes({"a": entry("F32", [1], 4, 0)}), UNSOUND, ("`a`",)),
    ("far", file_bytes({"a": entry("F32", [1], 2**64, 2**64 + 4)}), UNSOUND, ()),
    ("too few bytes for the shape", file_bytes({"a": entry("BF16", [3, 5], 0, 28)}, bytes(28)), UNSOUND, ()),
    ("half a byte", file_bytes({"a": entry("F4", [3], 0, 1)}, bytes(1)), UNSOUND, ()),
    ("overlap", file_bytes(ONE | {"b": entry("F32", [1], 2, 6)}, bytes(6)), UNSOUND, ("`b`",)),
    ("gap", file_bytes(ONE | {"b": entry("F32", [1], 5, 9)}, bytes(9)), UNSOUND, ("`b`",)),
    ("gap at the beginning", file_bytes({"a": entry("F32", [1], 4, 8)}, bytes(8)), UNSOUND, ("`a`",)),
    (
        "truncated data",
        file_bytes(ONE | {"b": entry("F32", [1], 4, 8), "c": entry("F32", [1], 8, 12)}, bytes(7)),
        f"{FILE} is truncated",
        ("199 bytes", "byte 204"),
    ),
    ("trailing bytes", file_bytes(ONE, bytes(5)), f"{FILE} is damaged", ("74 bytes", "byte 73")),
]


@pytest.mark.parametrize(("raw", "begins", "facts"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_refuses(tmp_path: Path, raw: bytes, begins: str, facts: tuple[str, ...]) -> None:
    (tmp_path / SINGLE).write_bytes(raw)
    message = refusal(tmp_path)
    assert message.startswith(begins)
    assert all(fact in message for fact in facts), message


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    raw = tensor_bytes({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    assert opened(tmp_path, raw).keys() == {"a", "b"}
    for size in range(len(raw)):
        (tmp_path / SINGLE).write_bytes(raw[:size])
        message = refusal(tmp_path)
        assert message.startswith(f"{FILE} is truncated") and f"{size} bytes" in message


def test_message_is_one_printable_line_of_bounded_length_whatever_a_tensor_is_called(tmp_path: Path) -> None:
    name = "a\n\x1b[2J\u202e" + "x" * 5000
    (tmp_path / SINGLE).write_bytes(file_bytes({name: entry("F32", [1] * 65, 0, 4)}, bytes(4)))
    message = refusal(tmp_path)
    assert r"tensor 'a\n\x1b[2J\u202exxx" in message
    assert len(message) < 2100
    assert str(CheckpointError("a\x1b\n\ud800\N{SNOWMAN}")) == "a\\x1b\\n\\ud800\N{SNOWMAN}"
