"""What one safetensors file may say about itself, and every way in which it may lie."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from convert import CheckpointError, SafetensorsFolder, TensorInfo
from tests.convert.checkpoint_files import DTYPES, SINGLE, entry, file_bytes, refusal, tensor_bytes

FILE = f"FOLDER/{SINGLE}"
AGAIN = "; download it again"


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


def test_tensors_come_in_the_order_of_their_bytes_whatever_the_order_of_the_header(tmp_path: Path) -> None:
    header = {"b": entry("F32", [1], 4, 8), "empty": entry("F32", [0], 4, 4), "a": entry("F32", [], 0, 4)}
    tensors = opened(tmp_path, file_bytes(header, np.array([1, 2], np.float32).tobytes()))
    assert list(tensors) == ["a", "empty", "b"]
    checkpoint = SafetensorsFolder.open(tmp_path)
    assert (checkpoint.read("a"), list(checkpoint.read("b"))) == (1.0, [2.0])


def test_header_may_be_padded_with_spaces(tmp_path: Path) -> None:
    assert (
        opened(tmp_path, file_bytes(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}   ', bytes(4)))["a"].start
        == 65
    )


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    size = 1 << 38  # 275 GB without a block on the disk: reading it would be noticed
    raw = file_bytes({"a": entry("BF16", [size // 2], 0, size)})
    with (tmp_path / SINGLE).open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + size)
    assert SafetensorsFolder.open(tmp_path).total_bytes == size


ONE = {"a": entry("F32", [1], 0, 4)}
LIES: list[tuple[str, bytes, str]] = [
    ("empty", b"", f"{FILE} has 0 bytes, a safetensors file has at least 10{AGAIN}"),
    (
        "git-lfs",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4892809584\n",
        f"{FILE} is a git-lfs pointer, not the file itself; run `git lfs pull` in FOLDER",
    ),
    (
        "web page",
        b"<!DOCTYPE html><html>\n" * 9,
        f"{FILE} is no safetensors file (it starts with b'<!DOCTYPE html><'){AGAIN}",
    ),
    ("zeros", bytes(64), f"{FILE} is no safetensors file (it starts with {bytes(16)}){AGAIN}"),
    (
        "huge header",
        (10**8 + 1).to_bytes(8, "little") + b"{}",
        f"{FILE}: a header of 100000001 bytes is announced, at most 100000000 are read{AGAIN}",
    ),
    (
        "truncated header",
        file_bytes(ONE)[:40],
        f"{FILE} is truncated: it has 40 bytes, its header alone ends at byte 69{AGAIN}",
    ),
    ("no JSON", file_bytes(b"{]"), f"{FILE}: its header is not valid JSON (Expecting property name"),
    ("no UTF-8", file_bytes(b'{"\xff": 1}'), f"{FILE}: its header is not valid JSON ('utf-8' codec can't decode"),
    ("surrogate", file_bytes(b'{"\\ud800": 1}'), f"{FILE}: its header is not valid JSON ('utf-8' codec can't encode"),
    ("nested", file_bytes(b'{"a":' + b"[" * 10**5), f"{FILE}: its header is not valid JSON (nested too deeply){AGAIN}"),
    ("long number", file_bytes(b'{"a":' + b"1" * 5000 + b"}"), f"{FILE}: its header is not valid JSON (Exceeds the"),
    ("minus zero", file_bytes(b'{"a":-0}'), f"{FILE}: its header is not valid JSON (-0 is no integer){AGAIN}"),
    ("key twice", file_bytes(b'{"a":1,"b":1,"a":1}'), f"{FILE}: its header is not valid JSON (key 'a' appears twice)"),
    ("list", file_bytes(b" [1] "), f"{FILE}: its header is a JSON list, expected an object{AGAIN}"),
    ("no tensors", file_bytes({"__metadata__": {}}), f"{FILE} holds no tensors{AGAIN}"),
    (
        "metadata",
        file_bytes({"__metadata__": {"n": 1}}),
        f"{FILE}: __metadata__ is {{'n': 1}}, expected an object of strings{AGAIN}",
    ),
    (
        "no entry",
        file_bytes({"a": [1]}),
        f"{FILE}: tensor 'a' is described by [1], expected ['data_offsets', 'dtype', 'shape']{AGAIN}",
    ),
    (
        "extra field",
        file_bytes({"a": ONE["a"] | {"scale": 1}}, bytes(4)),
        f"{FILE}: tensor 'a' is described by ['data_offsets', 'dtype', 'scale', 'shape'], expected",
    ),
    (
        "unknown dtype",
        file_bytes({"a": entry("Q4", [1], 0, 4)}),
        f"{FILE}: tensor 'a' has the unknown dtype 'Q4', expected",
    ),
    ("no dtype", file_bytes({"a": ONE["a"] | {"dtype": ["F32"]}}), f"{FILE}: tensor 'a' has the unknown dtype ['F32']"),
    (
        "negative size",
        file_bytes({"a": entry("F32", [-1, -1], 0, 4)}),
        f"{FILE}: tensor 'a' has shape [-1, -1], expected",
    ),
    (
        "true size",
        file_bytes({"a": ONE["a"] | {"shape": [True]}}),
        f"{FILE}: tensor 'a' has shape [True], expected at most",
    ),
    (
        "real size",
        file_bytes({"a": ONE["a"] | {"shape": [1.0]}}),
        f"{FILE}: tensor 'a' has shape [1.0], expected at most",
    ),
    (
        "no shape",
        file_bytes({"a": ONE["a"] | {"shape": 1}}),
        f"{FILE}: tensor 'a' has shape 1, expected at most 64 sizes",
    ),
    (
        "65 axes",
        file_bytes({"a": entry("F32", [1] * 65, 0, 4)}, bytes(4)),
        f"{FILE}: tensor 'a' has shape [1, 1, 1, 1, 1, 1, 1, 1, ...], expected at most 64 sizes",
    ),
    (
        "empty, yet too large for numpy",
        file_bytes({"a": entry("F32", [2**62, 2**62, 0], 0, 0)}),
        f"{FILE}: tensor 'a' has shape [{2**62}, {2**62}, 0], expected at most 64 sizes that memory could hold{AGAIN}",
    ),
    (
        "offset",
        file_bytes({"a": ONE["a"] | {"data_offsets": [4]}}),
        f"{FILE}: tensor 'a' has data_offsets [4], expected",
    ),
    ("backwards", file_bytes({"a": entry("F32", [1], 4, 0)}), f"{FILE}: tensor 'a' has data_offsets [4, 0], expected"),
    ("far", file_bytes({"a": entry("F32", [1], 2**64, 2**64 + 4)}), f"{FILE}: tensor 'a' has data_offsets [{2**64}, "),
    (
        "too few bytes for the shape",
        file_bytes({"a": entry("BF16", [3, 5], 0, 28)}, bytes(28)),
        f"{FILE}: tensor 'a' takes 28 bytes in the file, but shape [3, 5] in BF16 needs 30{AGAIN}",
    ),
    (
        "half a byte",
        file_bytes({"a": entry("F4", [3], 0, 1)}, bytes(1)),
        f"{FILE}: tensor 'a' takes 1 bytes in the file, but shape [3] in F4 needs 1.5{AGAIN}",
    ),
    (
        "overlap",
        file_bytes(ONE | {"b": entry("F32", [1], 2, 6)}, bytes(6)),
        f"{FILE}: tensor 'b' overlaps tensor 'a': it starts at byte 132, expected 134{AGAIN}",
    ),
    (
        "gap",
        file_bytes(ONE | {"b": entry("F32", [1], 5, 9)}, bytes(9)),
        f"{FILE}: tensor 'b' leaves a gap after tensor 'a': it starts at byte 135, expected 134{AGAIN}",
    ),
    (
        "gap at the beginning",
        file_bytes({"a": entry("F32", [1], 4, 8)}, bytes(8)),
        f"{FILE}: tensor 'a' leaves a gap after the header: it starts at byte 73, expected 69{AGAIN}",
    ),
    (
        "truncated data",
        file_bytes(ONE | {"b": entry("F32", [1], 4, 8), "c": entry("F32", [1], 8, 12)}, bytes(7)),
        f"{FILE} is truncated: it has 199 bytes, but tensor 'b' ends at byte 200 and the last one at byte 204{AGAIN}",
    ),
    ("trailing bytes", file_bytes(ONE, bytes(5)), f"{FILE} has 74 bytes, but its tensors end at byte 73{AGAIN}"),
]


@pytest.mark.parametrize(("raw", "message"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_refuses(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / SINGLE).write_bytes(raw)
    assert refusal(tmp_path).startswith(message)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    raw = tensor_bytes({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    assert list(opened(tmp_path, raw)) == ["a", "b"]
    for size in range(len(raw)):
        (tmp_path / SINGLE).write_bytes(raw[:size])
        assert refusal(tmp_path).endswith(AGAIN)


def test_message_is_one_printable_line_of_bounded_length_whatever_a_tensor_is_called(tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_bytes(file_bytes({"a\n\x1b[2J\u202e" + "x" * 5000: 1}))
    message = refusal(tmp_path)
    assert r"tensor 'a\n\x1b[2J\u202exxx" in message
    assert len(message) < 2100
    assert str(CheckpointError("a\x1b\n\ud800\N{SNOWMAN}")) == "a\\x1b\\n\\ud800\N{SNOWMAN}"
