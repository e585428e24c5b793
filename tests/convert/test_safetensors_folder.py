"""Which files of a folder are the checkpoint, and whether they agree with each other."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import convert
from convert import CheckpointError, SafetensorsFolder
from tests.convert.checkpoint_files import (
    INDEX,
    SINGLE,
    refusal,
    tensor_bytes,
    write_index,
    write_sharded,
    write_single,
)

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
A, B = np.array([1, 2], np.float32), np.array([[3.0]], np.float16)


def sharded(folder: Path) -> Path:
    return write_sharded(folder, {FIRST: {"a": A}, SECOND: {"b": B, "c": A}})


def test_reads_shards(tmp_path: Path) -> None:
    checkpoint = SafetensorsFolder.open(str(sharded(tmp_path)))
    assert list(checkpoint.tensors) == ["a", "b", "c"]
    assert checkpoint.tensors["b"].file == tmp_path / SECOND
    assert checkpoint.total_bytes == 8 + 2 + 8
    assert checkpoint.read("b").tolist() == [[3.0]]


def test_reads_links_to_files_outside_of_the_folder_as_the_hf_cache_has_them(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    sharded(blobs)
    for name in (FIRST, SECOND, INDEX):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert SafetensorsFolder.open(snapshot).read("a").tolist() == [1, 2]

    (blobs / SECOND).unlink()
    assert refusal(snapshot) == (
        f"FOLDER/{SECOND} is a link to ../../blobs/{SECOND}, where there is no file to read; download it again"
    )


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    write_single(tmp_path, {"a": A})
    for name in ("consolidated.safetensors", "pytorch_model.bin", "config.json"):
        (tmp_path / name).write_bytes(b"?")
    assert list(SafetensorsFolder.open(tmp_path).tensors) == ["a"]


def test_an_index_may_name_the_single_file(tmp_path: Path) -> None:
    write_sharded(tmp_path, {SINGLE: {"a": A}})
    assert list(SafetensorsFolder.open(tmp_path).tensors) == ["a"]


def test_refuses_two_checkpoints_in_one_folder(tmp_path: Path) -> None:
    write_single(sharded(tmp_path), {"a": A})
    assert refusal(tmp_path) == (
        f"FOLDER holds {SINGLE} and also {INDEX}, which does not name it: two checkpoints; remove one"
    )


def test_refuses_a_path_that_is_no_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a") == "cannot read the folder FOLDER: No such file or directory; check the path"
    file = write_single(tmp_path, {"a": A}) / SINGLE
    assert refusal(file) == "FOLDER is a file; give the folder that holds it and config.json"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], f"FOLDER holds nothing; expected {SINGLE} or {INDEX}: download the weights"),
        (
            ["config.json", "model.gguf"],
            f"FOLDER holds only 'config.json', 'model.gguf'; expected {SINGLE} or {INDEX}: download the weights",
        ),
        (
            ["config.json", "pytorch_model-1.bin", "pytorch_model-2.bin", "a.pt", "b.pth", "c.ckpt"],
            "FOLDER holds only pickled weights ('a.pt', 'b.pth', 'c.ckpt' and 2 more), and pickle can run code; "
            're-save as safetensors: python -c "from transformers import AutoModelForCausalLM as M; '
            "M.from_pretrained('FOLDER').save_pretrained('FOLDER-safetensors')\"",
        ),
        (
            [FIRST, SECOND, "pytorch_model.bin"],
            f"FOLDER holds '{FIRST}', '{SECOND}' but no index; expected {SINGLE} or {INDEX}: "
            "download the index, or rename a single file",
        ),
    ],
)
def test_refuses_a_folder_without_safetensors(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert refusal(tmp_path) == message


@pytest.mark.parametrize("leaving", [f"../x/{FIRST}", f"/etc/{FIRST}", f"sub/{FIRST}", f"..\\{FIRST}", "..safetensors"])
def test_refuses_an_index_that_leaves_the_folder(tmp_path: Path, leaving: str) -> None:
    folder = tmp_path / "x"
    (folder / "sub").mkdir(parents=True)
    # The files are there, so that only the name is at fault.
    for inside in (folder, folder / "sub"):
        (inside / FIRST).write_bytes(tensor_bytes({"a": A}))
    write_index(folder, {"a": leaving})
    assert refusal(folder) == (
        f"FOLDER/{INDEX}: tensor 'a' is in {leaving!r}, which leaves the folder; "
        "expected a file inside it: download it again"
    )


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "weight_map is None, expected tensor names with files; download it again"),
        ({}, "weight_map is {}, expected tensor names with files; download it again"),
        (["a"], "weight_map is ['a'], expected tensor names with files; download it again"),
        ({"a": 1}, "tensor 'a' is in 1, expected a .safetensors file; download it again"),
        ({"a": "a.bin"}, "tensor 'a' is in 'a.bin', expected a .safetensors file; download it again"),
    ],
)
def test_refuses_an_index_without_files(tmp_path: Path, weight_map: object, message: str) -> None:
    write_index(tmp_path, weight_map)
    assert refusal(tmp_path) == f"FOLDER/{INDEX}: {message}"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is not valid JSON (Expecting value: line 1 column 1 (char 0)); download it again"),
        (b"[]", "is a JSON list, expected an object; download it again"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "is not valid JSON (key 'a' appears twice); download it again"),
        (b"[" * 10**5, "is not valid JSON (nested too deeply); download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 92658\n",
            "is a git-lfs pointer, not the file itself; run `git lfs pull` in FOLDER",
        ),
    ],
)
def test_refuses_an_index_that_is_none(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / INDEX).write_bytes(raw)
    assert refusal(tmp_path).removeprefix(f"FOLDER/{INDEX}").removeprefix(":").strip() == message


def test_refuses_an_index_too_large_to_be_one(tmp_path: Path) -> None:
    with (tmp_path / INDEX).open("wb") as file:
        file.truncate(10**8 + 1)
    assert refusal(tmp_path) == (f"FOLDER/{INDEX} has 100000001 bytes, at most 100000000 are read; download it again")


def test_refuses_an_index_with_missing_shards(tmp_path: Path) -> None:
    names = [f"model-{i:05}-of-00006.safetensors" for i in range(1, 6)] + ["nul\0.safetensors"]
    write_sharded(tmp_path, {FIRST: {"a": A}})
    write_index(tmp_path, {"a": FIRST} | {name: name for name in names})
    assert refusal(tmp_path) == (
        f"FOLDER/{INDEX} names 7 files, of which 6 are missing: {names[0]!r}, {names[1]!r}, {names[2]!r} and 3 more; "
        "download them"
    )


def test_refuses_a_shard_without_a_tensor_of_the_index(tmp_path: Path) -> None:
    write_index(sharded(tmp_path), {"a": FIRST, "b": SECOND, "c": SECOND, "d": SECOND})
    assert refusal(tmp_path) == f"FOLDER/{SECOND} does not hold 'd', but {INDEX} says so; download it again"


def test_refuses_a_shard_with_tensors_that_the_index_does_not_name(tmp_path: Path) -> None:
    more = {f"x{i}": A for i in range(5)}
    write_sharded(tmp_path, {FIRST: {"a": A, **more}})
    write_index(tmp_path, {"a": FIRST})
    assert refusal(tmp_path) == (
        f"FOLDER/{FIRST} holds 'x0', 'x1', 'x2' and 2 more, which {INDEX} does not name; download it again"
    )


def test_refuses_a_tensor_in_two_shards(tmp_path: Path) -> None:
    write_sharded(tmp_path, {FIRST: {"a": A}, SECOND: {"b": B, "a": A}})
    write_index(tmp_path, {"a": FIRST, "b": SECOND})
    assert refusal(tmp_path) == f"FOLDER/{SECOND} holds 'a', but {INDEX} says '{FIRST}' does; download it again"


def test_names_the_damaged_shard(tmp_path: Path) -> None:
    damaged = sharded(tmp_path) / SECOND
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert refusal(tmp_path).startswith(f"FOLDER/{SECOND} is truncated: it has ")


@pytest.mark.parametrize("name", [SINGLE, INDEX])
def test_refuses_what_is_no_regular_file(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)  # opening it would wait forever
    assert refusal(tmp_path) == f"FOLDER/{name} is no regular file; remove it and download it again"


def test_reading_an_unknown_tensor_names_what_is_there(tmp_path: Path) -> None:
    checkpoint = SafetensorsFolder.open(sharded(tmp_path))
    with pytest.raises(CheckpointError, match=r"holds no tensor 'z', only 'a', 'b', 'c'$"):
        checkpoint.read("z")


def test_reading_after_the_file_has_gone_or_shrunk(tmp_path: Path) -> None:
    checkpoint = SafetensorsFolder.open(write_single(tmp_path, {"a": A}))
    file = tmp_path / SINGLE
    os.truncate(file, file.stat().st_size - 3)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read("a")
    assert str(caught.value) == (
        f"{file} was truncated after it was opened: tensor 'a' has 8 bytes, got 5; download it again"
    )
    file.unlink()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read("a")
    assert str(caught.value) == f"cannot read {file}: No such file or directory; check the disk and the path"


def test_package_exports_its_names_and_imports_no_jax() -> None:
    assert all(hasattr(convert, name) for name in convert.__all__)
    code = "import convert, sys; print(*sorted({'jax', 'jaxlib', 'moejax', 'sharding', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.split() == ["numpy"]
