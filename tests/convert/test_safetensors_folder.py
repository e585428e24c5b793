"""Which files of a folder are the checkpoint, and whether they agree with each other."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moejax import _convert as convert
from moejax._convert import CheckpointError, SafetensorsFolder
from moejax._convert.files import CONVERTED
from tests.convert.checkpoint_files import (
    INDEX,
    SINGLE,
    assert_refused,
    tensor_bytes,
    write_index,
    write_sharded,
    write_single,
)
from tests.messages import refuses

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
    assert_refused(snapshot, f"FOLDER/{SECOND}", f"../../blobs/{SECOND}")


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
    assert_refused(tmp_path, SINGLE, INDEX, "two", "'b'")


@pytest.mark.parametrize("lost", [False, True])
def test_a_single_file_with_all_tensors_is_read_before_an_index(tmp_path: Path, lost: bool) -> None:
    """As transformers does, which does not look at the index then; nor are its files needed."""
    whole = {name: A + 1 for name in SafetensorsFolder.open(sharded(tmp_path)).tensors}
    write_single(tmp_path, whole)
    if lost:
        (tmp_path / FIRST).unlink()
    folder = SafetensorsFolder.open(tmp_path)
    assert {tensor.file.name for tensor in folder.tensors.values()} == {SINGLE}
    assert folder.unread_index == tmp_path / INDEX
    np.testing.assert_array_equal(folder.read("a"), A + 1)
    with refuses(CheckpointError, SINGLE, INDEX, "two"):  # of a conversion's own files, none came later
        SafetensorsFolder.open(tmp_path, CONVERTED)


def test_refuses_a_path_that_is_no_folder(tmp_path: Path) -> None:
    assert_refused(tmp_path / "a", "FOLDER", "No such file or directory")
    file = write_single(tmp_path, {"a": A}) / SINGLE
    assert_refused(file, "FOLDER is a file")


@pytest.mark.parametrize(
    ("files", "facts"),
    [
        ([], ("nothing", SINGLE, INDEX)),
        (["config.json", "notes.txt"], ("'config.json'", "'notes.txt'", SINGLE, INDEX)),
        (["config.json", "model.gguf"], ("'model.gguf'", "GGUF")),
        (
            ["config.json", "pytorch_model-1.bin", "pytorch_model-2.bin", "a.pt", "b.pth", "c.ckpt"],
            ("'a.pt'", "'b.pth'", "'c.ckpt'", "2 more", "pickle", "FOLDER-safetensors", "save_pretrained"),
        ),
        ([FIRST, SECOND, "config.json"], (f"'{FIRST}', '{SECOND}'", "no index", INDEX)),
    ],
)
def test_refuses_a_folder_without_safetensors(tmp_path: Path, files: list[str], facts: tuple[str, ...]) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert_refused(tmp_path, "FOLDER", *facts)


@pytest.mark.parametrize("leaving", [f"../x/{FIRST}", f"/etc/{FIRST}", f"sub/{FIRST}", f"..\\{FIRST}", "..safetensors"])
def test_refuses_an_index_that_leaves_the_folder(tmp_path: Path, leaving: str) -> None:
    folder = tmp_path / "x"
    (folder / "sub").mkdir(parents=True)
    # The files are there, so that only the name is at fault.
    for inside in (folder, folder / "sub"):
        (inside / FIRST).write_bytes(tensor_bytes({"a": A}))
    write_index(folder, {"a": leaving})
    assert_refused(folder, f"FOLDER/{INDEX}: tensor 'a' is in {leaving!r}, which leaves the folder")


@pytest.mark.parametrize(
    ("weight_map", "facts"),
    [
        (None, ("weight_map", "None")),
        ({}, ("weight_map is {}",)),
        (["a"], ("weight_map", "['a']")),
        ({"a": 1}, ("'a'", " 1", ".safetensors")),
        ({"a": "a.bin"}, ("'a'", "'a.bin'", ".safetensors")),
    ],
)
def test_refuses_an_index_without_files(tmp_path: Path, weight_map: object, facts: tuple[str, ...]) -> None:
    write_index(tmp_path, weight_map)
    assert_refused(tmp_path, f"FOLDER/{INDEX}", *facts)


@pytest.mark.parametrize(
    ("raw", "facts"),
    [
        (b"", ("JSON",)),
        (b"[]", ("JSON list",)),
        (b'{"weight_map": {"a": "x", "a": "y"}}', ("JSON", "'a'", "twice")),
        (b"[" * 10**5, ("JSON", "nested")),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 92658\n",
            ("git-lfs pointer", "git lfs pull"),
        ),
    ],
)
def test_refuses_an_index_that_is_none(tmp_path: Path, raw: bytes, facts: tuple[str, ...]) -> None:
    (tmp_path / INDEX).write_bytes(raw)
    assert_refused(tmp_path, f"FOLDER/{INDEX}", *facts)


def test_refuses_an_index_too_large_to_be_one(tmp_path: Path) -> None:
    with (tmp_path / INDEX).open("wb") as file:
        file.truncate(10**8 + 1)
    assert_refused(tmp_path, f"FOLDER/{INDEX}", "100000001", "100000000")


def test_refuses_an_index_with_missing_shards(tmp_path: Path) -> None:
    names = [f"model-{i:05}-of-00006.safetensors" for i in range(1, 6)] + ["nul\0.safetensors"]
    write_sharded(tmp_path, {FIRST: {"a": A}})
    write_index(tmp_path, {"a": FIRST} | {name: name for name in names})
    assert_refused(
        tmp_path, f"FOLDER/{INDEX}", "7 files", "6 are missing", f"{names[0]!r}, {names[1]!r}, {names[2]!r} and 3 more"
    )


def test_refuses_a_shard_without_a_tensor_of_the_index(tmp_path: Path) -> None:
    write_index(sharded(tmp_path), {"a": FIRST, "b": SECOND, "c": SECOND, "d": SECOND})
    assert_refused(tmp_path, f"FOLDER/{SECOND}", "'d'", INDEX)


def test_refuses_a_shard_with_tensors_that_the_index_does_not_name(tmp_path: Path) -> None:
    more = {f"x{i}": A for i in range(5)}
    write_sharded(tmp_path, {FIRST: {"a": A, **more}})
    write_index(tmp_path, {"a": FIRST})
    assert_refused(tmp_path, f"FOLDER/{FIRST}", "'x0', 'x1', 'x2' and 2 more", INDEX)


@pytest.mark.parametrize("place", [FIRST, SECOND])
def test_of_a_tensor_in_two_shards_the_index_says_which(tmp_path: Path, place: str) -> None:
    write_sharded(tmp_path, {FIRST: {"a": A, "c": A}, SECOND: {"b": B, "a": 2 * A}})
    write_index(tmp_path, {"a": place, "b": SECOND, "c": FIRST})
    found = SafetensorsFolder.open(tmp_path)
    assert sorted(found.tensors) == ["a", "b", "c"]
    assert found.read("a").tolist() == ([1, 2] if place == FIRST else [2, 4])


def test_names_the_damaged_shard(tmp_path: Path) -> None:
    damaged = sharded(tmp_path) / SECOND
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert_refused(tmp_path, f"FOLDER/{SECOND} is truncated")


@pytest.mark.parametrize("name", [SINGLE, INDEX])
def test_refuses_what_is_no_regular_file(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)  # opening it would wait forever
    assert_refused(tmp_path, f"FOLDER/{name}", "no regular file")


def test_reading_an_unknown_tensor_names_what_is_there(tmp_path: Path) -> None:
    checkpoint = SafetensorsFolder.open(sharded(tmp_path))
    with refuses(CheckpointError, "'z'", "'a'", "'b'", "'c'"):
        checkpoint.read("z")


def test_reading_after_the_file_has_gone_shrunk_or_been_replaced(tmp_path: Path) -> None:
    checkpoint = SafetensorsFolder.open(write_single(tmp_path, {"a": A}))
    file = tmp_path / SINGLE
    size = file.stat().st_size
    os.truncate(file, size - 3)
    with refuses(CheckpointError, "truncated") as caught:
        checkpoint.read("a")
    assert (
        str(file) in str(caught.value) and f"{size} bytes" in str(caught.value) and str(size - 3) in str(caught.value)
    )
    file.rename(tmp_path / "other")  # which keeps the number that the system gave the first
    with refuses(CheckpointError, "No such file"):
        checkpoint.read("a")
    write_single(tmp_path, {"a": A})
    with pytest.raises(CheckpointError, match="another file"):
        checkpoint.read("a")
    assert SafetensorsFolder.open(tmp_path).read("a").tolist() == [1, 2]


def test_package_exports_its_names_and_imports_no_jax() -> None:
    assert all(hasattr(convert, name) for name in convert.__all__)
    others = {"jax", "jaxlib", "numpy", "tensorstore", "safetensors", "orbax"}
    code = f"import moejax._convert, sys; print(*sorted({others} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.split() == ["numpy"]
