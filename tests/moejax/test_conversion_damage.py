"""A conversion is called complete only when whoever has no moejax finds in its folder what was converted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors import safe_open

import moejax
from moejax._convert import CheckpointError
from moejax._convert.journal import WORK
from tests.messages import says
from tests.moejax.conversion_folders import DTYPES, Tensors, assert_same_tensors, config_of, weights_of, write_hf
from tests.moejax.test_conversion_resume import largest_file, refusal, unfinished

CONFIG = config_of(num_hidden_layers=1, num_local_experts=2)
WEIGHTS = weights_of(CONFIG)
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def orbax(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    moejax.convert(write_hf(folder / "hf", CONFIG, WEIGHTS), folder / "orbax")
    return folder / "orbax"


@pytest.fixture(scope="module")
def exported(orbax: Path) -> Path:
    moejax.convert(orbax, orbax.with_name("exported"), shard_size="20KB")
    return orbax.with_name("exported")


def as_dtype(dtype: str) -> Tensors:
    return {name: values.astype(DTYPES[dtype]) for name, values in WEIGHTS.items()}


def read_by_safetensors(folder: Path) -> Tensors:
    """What the library finds, of which every file says that it is for transformers."""
    names: dict[str, str] = {}
    if (folder / INDEX).exists():
        names = json.loads((folder / INDEX).read_text())["weight_map"]
    found: Tensors = {}
    for file in sorted(set(names.values()) or {"model.safetensors"}):
        with safe_open(folder / file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert not names or names.keys() == found.keys()
    return found


def read_by_orbax(folder: Path) -> dict[str, np.ndarray]:
    items = sorted((folder / "weights").iterdir())
    return {
        f"{item.name} {key}": values
        for item in items
        for key, values in ocp.PyTreeCheckpointer().restore(item.absolute()).items()
    }


# --- beginning anew ---


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"dtype": "bfloat16"}, {"dtype": "float16"}),
        ({"dtype": "float16"}, {"dtype": "bfloat16"}),
        ({"dtype": "bfloat16"}, {"dtype": "float32"}),
        ({"dtype": "float16", "shard_size": "20KB"}, {"dtype": "float16", "shard_size": "40KB"}),
        ({"dtype": "float16", "shard_size": "20KB"}, {"dtype": "bfloat16"}),
    ],
    ids=str,
)
def test_restart_keeps_nothing_of_what_was_stopped(
    orbax: Path, tmp_path: Path, first: dict[str, Any], second: dict[str, Any]
) -> None:
    target = unfinished(orbax, tmp_path / "target", **first)
    assert list((target / WORK).rglob("*.safetensors"))
    assert moejax.convert(orbax, target, restart=True, **second).kept == 0
    assert_same_tensors(read_by_safetensors(target), as_dtype(second["dtype"]))


def test_restart_in_the_other_direction_removes_what_was_converted(orbax: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    moejax.convert(orbax.with_name("hf"), target)
    (target / "weights" / "notes.txt").write_text("mine")
    moejax.convert(orbax, target, restart=True)
    assert [path.name for path in (target / "weights").iterdir()] == ["notes.txt"]
    assert_same_tensors(read_by_safetensors(target), WEIGHTS)
    moejax.convert(orbax.with_name("hf"), target, restart=True)
    assert not list(target.glob("*.safetensors"))


# --- what lies in the work folder ---


def zero_head(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[: 8 + int.from_bytes(raw[:8], "little")] = bytes(8 + int.from_bytes(raw[:8], "little"))
    file.write_bytes(raw)


def other_dtype(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"I32"'))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [zero_head, other_dtype, cut, Path.unlink])
def test_a_damaged_file_of_a_stopped_export_is_mended(
    orbax: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    target = unfinished(orbax, tmp_path / "target")
    (file,) = (target / WORK).rglob("*.safetensors")
    damage(file)
    moejax.convert(orbax, target)
    assert_same_tensors(read_by_safetensors(target), WEIGHTS)


@pytest.mark.parametrize("damage", ["empty", "zeros", "removed", "other keys"])
def test_a_damaged_item_of_a_stopped_conversion_is_written_again(orbax: Path, tmp_path: Path, damage: str) -> None:
    target = unfinished(orbax.with_name("hf"), tmp_path / "target")
    apply(damage, target / "weights" / "embed" / "_METADATA")
    report = moejax.convert(orbax.with_name("hf"), target)
    assert list(report.redone) == ["embed"]
    assert read_by_orbax(target).keys() == read_by_orbax(orbax).keys()


@pytest.mark.parametrize("journal", [b"", b'{"header": {"options": 3}}\n', b"\xff\xfe\n"])
def test_a_damaged_journal_is_told_and_begun_anew(orbax: Path, tmp_path: Path, journal: bytes) -> None:
    target = unfinished(orbax, tmp_path / "target")
    (target / WORK / "journal.jsonl").write_bytes(journal)
    says(refusal(orbax, target), "journal.jsonl", "damaged", "--restart")
    with pytest.raises(CheckpointError, match="damaged"):
        moejax.load(target)
    moejax.convert(orbax, target, restart=True)
    assert_same_tensors(read_by_safetensors(target), WEIGHTS)


# --- what lies in a finished folder ---


def apply(damage: str, file: Path) -> None:
    raw = file.read_bytes()
    if damage == "removed":
        file.unlink()
        return
    kinds = {
        "empty": b"",
        "zeros": bytes(len(raw)),
        "an object": b"{}",
        "other keys": raw.replace(b"table", b"tabel").replace(b"model.", b"modal."),
        "other dtype": raw.replace(b'"F32"', b'"I32"').replace(b"float32", b"int32").replace(b"ndarray", b"dnarray"),
        "other numbers": raw.replace(b"1", b"2", 3),
    }
    file.write_bytes(kinds[damage])


DAMAGES = ("empty", "zeros", "an object", "removed", "other keys", "other dtype", "other numbers")


def metadata_of(folder: Path) -> list[Path]:
    """Whatever describes weights there: of the items of a converted folder, two of them."""
    if (folder / INDEX).exists():
        return [folder / INDEX, *sorted(folder.glob("*.safetensors"))[:2]]
    item = folder / "weights" / "embed"
    return [item / "_METADATA", item / "table" / "zarr.json", folder / "weights" / "layers.0.router" / "_METADATA"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_converted_folder_with_damaged_metadata_is_not_called_complete(
    orbax: Path, tmp_path: Path, damage: str
) -> None:
    whole = read_by_orbax(orbax)
    for number, file in enumerate(metadata_of(orbax)):
        target = Path(shutil.copytree(orbax, tmp_path / str(number)))
        apply(damage, target / file.relative_to(orbax))
        complete_or_told(orbax.with_name("hf"), target, lambda folder: read_by_orbax(folder), whole)


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_export_with_damaged_metadata_is_not_called_complete(
    orbax: Path, exported: Path, tmp_path: Path, damage: str
) -> None:
    for number, file in enumerate(metadata_of(exported)):
        target = Path(shutil.copytree(exported, tmp_path / str(number)))
        apply(damage, target / file.relative_to(exported))
        complete_or_told(orbax, target, read_by_safetensors, WEIGHTS, shard_size="20KB")


def complete_or_told(
    source: Path, target: Path, read: Callable[[Path], Tensors], whole: Tensors, **options: Any
) -> None:
    """A conversion that is there either reads for anybody as it was, or is refused with what helps."""
    try:
        moejax.convert(source, target, **options)
    except CheckpointError as error:
        says(str(error), target, "--restart")
        assert "download" not in str(error)
        moejax.convert(source, target, restart=True, **options)
    assert_same_tensors(read(target), whole)


@pytest.mark.parametrize("of", ["arrays", "dtype", "shape", "ignored"])
def test_a_manifest_that_says_something_else_is_damage(orbax: Path, tmp_path: Path, of: str) -> None:
    target = Path(shutil.copytree(orbax, tmp_path / "target"))
    manifest = json.loads((target / "manifest.json").read_text())
    entry = next(iter(manifest["arrays"].values()))
    match of:
        case "arrays":
            del manifest["arrays"]["final_norm.scale"]
        case "dtype":
            entry["dtype"] = "BF16"
        case "shape":
            entry["shape"] = entry["shape"][::-1]
        case "ignored":
            manifest["ignored"] = {"lm_head.weight": "no reason"}
    (target / "manifest.json").write_text(json.dumps(manifest))
    says(refusal(orbax.with_name("hf"), target), "manifest.json", "--restart")


def test_a_damaged_chunk_is_told_as_ever(orbax: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(orbax, tmp_path / "target"))
    chunk = largest_file(target / "weights")
    chunk.write_bytes(bytes(chunk.stat().st_size))
    says(refusal(orbax.with_name("hf"), target), target, "damaged", chunk)


# --- files beside the weights ---

CUT_OFF = "{"  # JSON that ends too early


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{}"),
        ("config.json", CUT_OFF),
        ("config.json", json.dumps(CONFIG | {"num_hidden_layers": 2})),
        ("config.json", None),
        ("generation_config.json", CUT_OFF),
        ("tokenizer.json", CUT_OFF),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_a_folder_that_no_longer_loads_is_damaged(
    orbax: Path, exported: Path, tmp_path: Path, name: str, content: str | None
) -> None:
    options: dict[str, Any]
    for source, whole, options in ((orbax.with_name("hf"), orbax, {}), (orbax, exported, {"shard_size": "20KB"})):
        target = Path(shutil.copytree(whole, tmp_path / whole.name))
        (target / name).unlink()
        if content is not None:
            (target / name).write_text(content)
        message = refusal(source, target, **options)
        says(message, target, "damaged", "--restart")
        assert "download" not in message
        moejax.convert(source, target, restart=True, **options)
        assert (target / name).read_bytes() == (whole / name).read_bytes()


def test_a_damaged_side_file_of_a_source_is_not_carried(orbax: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(orbax, tmp_path / "source"))
    (source / "tokenizer.json").write_text(CUT_OFF)
    says(refusal(source, tmp_path / "target"), "damaged", source / "tokenizer.json")
    assert not (tmp_path / "target").exists()
