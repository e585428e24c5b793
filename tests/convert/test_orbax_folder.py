"""Orbax checkpoints: chunks of our choice, parts of arrays, and damage that is found."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from moejax._convert import CheckpointError, OrbaxFolder
from moejax._convert.checksums import array_checksum
from moejax._convert.items import ArrayPlan, Item, Place
from moejax._convert.journal import WORK
from moejax._convert.manifest import ArrayEntry, Manifest
from moejax._convert.orbax_target import OrbaxTarget
from tests.messages import refuses, says

BF16 = np.dtype(ml_dtypes.bfloat16)
RNG = np.random.default_rng(0)
TALL = RNG.standard_normal((4096, 1024)).astype(BF16)  # 8 MB
WIDE = RNG.standard_normal((1024, 4096)).astype(BF16)
NORM = RNG.standard_normal(1024).astype(np.float32)
NAMES = {"BF16": BF16, "F32": np.dtype(np.float32)}


def folder_with(folder: Path, arrays: dict[str, np.ndarray], *, finite: bool = True) -> Path:
    """A converted folder with one item called `item`."""
    plans = {
        key: ArrayPlan(
            source=key,
            target=f"path.{key}",
            shape=array.shape,
            dtype=next(name for name, dtype in NAMES.items() if dtype == array.dtype),
        )
        for key, array in arrays.items()
    }
    places = {f"path.{key}": Place(item="item", key=key, split_axis=key == "wide") for key in arrays}
    target = OrbaxTarget(folder=folder, places=places)
    (folder / WORK).mkdir(parents=True)
    target.prepare([])
    item = Item(name="item", arrays=tuple(plans.values()), files=())
    target.write(item, {f"path.{key}": array for key, array in arrays.items()})
    target.publish()
    (folder / WORK).rmdir()
    entries = {
        f"path.{key}": ArrayEntry(
            item="item",
            key=key,
            shape=array.shape,
            dtype=plans[key].dtype,
            checksum=array_checksum(array),
            finite=finite,
        )
        for key, array in arrays.items()
    }
    manifest = Manifest(
        format="orbax",
        moejax_version="0",
        source_format="safetensors",
        source_files={},
        options={},
        ignored={},
        arrays=entries,
        files={},
    )
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return folder


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OrbaxFolder:
    folder = folder_with(tmp_path_factory.mktemp("orbax"), {"tall": TALL, "wide": WIDE, "norm": NORM})
    return OrbaxFolder.open(folder)


def test_arrays_come_back_bit_by_bit(opened: OrbaxFolder) -> None:
    for key, values in {"tall": TALL, "wide": WIDE, "norm": NORM}.items():
        found = opened.read(f"path.{key}")
        assert found.dtype == values.dtype
        assert found.tobytes() == values.tobytes()
    assert opened.total_bytes == TALL.nbytes + WIDE.nbytes + NORM.nbytes


def test_chunks_divide_the_axis_that_a_mesh_divides(opened: OrbaxFolder) -> None:
    item = opened.folder / "weights" / "item"
    found = {key: json.loads((item / key / "zarr.json").read_text()) for key in ("tall", "wide", "norm")}
    chunks = {key: raw["chunk_grid"]["configuration"]["chunk_shape"] for key, raw in found.items()}
    assert chunks == {"tall": [1024, 1024], "wide": [1024, 1024], "norm": [1024]}


def test_a_part_reads_only_its_chunks(opened: OrbaxFolder) -> None:
    before = opened.read_bytes.total
    out = np.empty((1024, 1024), BF16)
    opened.read_into("path.wide", out, (slice(0, 1024), slice(2048, 3072)))
    assert np.array_equal(out, WIDE[:, 2048:3072])
    assert opened.read_bytes.total - before == out.nbytes == WIDE.nbytes // 4
    crossing = np.empty((512, 2), BF16)
    opened.read_into("path.tall", crossing, (slice(768, 1280), slice(5, 7)))
    assert np.array_equal(crossing, TALL[768:1280, 5:7])
    assert opened.read_bytes.total - before == out.nbytes + TALL.nbytes // 2


def test_values_are_rounded_to_the_dtype_of_the_target(opened: OrbaxFolder) -> None:
    assert np.array_equal(opened.read("path.tall", np.float32), TALL.astype(np.float32))
    assert np.array_equal(opened.read("path.norm", BF16), NORM.astype(BF16))


def test_orbax_alone_restores_it(opened: OrbaxFolder) -> None:
    for checkpointer in (ocp.PyTreeCheckpointer(), ocp.StandardCheckpointer()):
        restored = checkpointer.restore(opened.folder / "weights" / "item")
        assert restored.keys() == {"tall", "wide", "norm"}
        assert restored["wide"].dtype == BF16 and np.array_equal(restored["wide"], WIDE)


def test_a_folder_of_format_version_2_is_read(tmp_path: Path) -> None:
    """As it was until then: zarr version 2, and checksums of chunks in the manifest, which nobody compares now."""
    folder_with(tmp_path, {"wide": WIDE, "norm": NORM})
    shutil.rmtree(tmp_path / "weights" / "item")
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "weights" / "item", args=ocp.args.PyTreeSave({"wide": WIDE, "norm": NORM}))
    raw = json.loads((tmp_path / "manifest.json").read_text())
    raw["format_version"] = 2
    for entry in raw["arrays"].values():
        entry["chunks"] = ["crc32:00000000"]
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    old = OrbaxFolder.open(tmp_path)
    assert old.read("path.wide").tobytes() == WIDE.tobytes() and old.read("path.norm").tobytes() == NORM.tobytes()
    part = np.empty((3, 2), BF16)
    old.read_into("path.wide", part, (slice(5, 8), slice(1, 3)))
    assert np.array_equal(part, WIDE[5:8, 1:3])
    flip_byte(tmp_path / "weights" / "item" / "wide" / "0.0")
    says(refusal(tmp_path, "path.wide"), "damaged")


def refusal(folder: Path, name: str, dtype: np.dtype | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        OrbaxFolder.open(folder).read(name, dtype)
    return str(caught.value)


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    folder_with(tmp_path, {"wide": WIDE})
    damaged = largest_file(tmp_path / "weights")
    flip_byte(damaged)
    message = refusal(tmp_path, "path.wide")
    assert str(damaged) in message and "--restart" in message
    says(message, "damaged")
    columns = slice(1024 * int(damaged.name), 1024 * int(damaged.name) + 1)
    with pytest.raises(CheckpointError, match="was damaged"):  # as a device finds it that reads a part
        OrbaxFolder.open(tmp_path).read_into("path.wide", np.empty((1, 1), BF16), (slice(0, 1), columns))


def test_an_array_that_is_another_is_found(tmp_path: Path) -> None:
    """Sound by itself, but not what the manifest says."""
    folder_with(tmp_path / "a", {"norm": NORM})
    folder_with(tmp_path / "b", {"norm": NORM[::-1].copy()})
    shutil.rmtree(tmp_path / "a" / "weights")
    (tmp_path / "b" / "weights").rename(tmp_path / "a" / "weights")
    message = refusal(tmp_path / "a", "path.norm")
    assert array_checksum(NORM) in message
    says(message, "damaged")


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_byte(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    folder_with(tmp_path, {"wide": WIDE})
    damaged = largest_file(tmp_path / "weights")
    damaged.unlink()
    message = refusal(tmp_path, "path.wide")
    assert str(damaged) in message and "missing" in message


def test_missing_item_and_missing_manifest(tmp_path: Path) -> None:
    with refuses(CheckpointError, "no converted"):
        OrbaxFolder.open(tmp_path)
    folder_with(tmp_path, {"norm": NORM})
    (tmp_path / "weights" / "item").rename(tmp_path / "weights" / "other")
    with pytest.raises(CheckpointError, match="weights lacks 'item'"):
        OrbaxFolder.open(tmp_path)


def test_nan_is_let_through_only_where_the_conversion_did(tmp_path: Path) -> None:
    values = NORM.copy()
    values[3] = np.nan
    folder_with(tmp_path / "a", {"norm": values})
    says(refusal(tmp_path / "a", "path.norm"), "'path.norm'", "1", "NaN", "1024")
    folder_with(tmp_path / "b", {"norm": values}, finite=False)
    assert np.isnan(OrbaxFolder.open(tmp_path / "b").read("path.norm")[3])


def test_what_does_not_fit_the_dtype_is_refused(tmp_path: Path) -> None:
    folder_with(tmp_path, {"norm": np.full(1024, 1e5, np.float32)})
    says(refusal(tmp_path, "path.norm", np.dtype(np.float16)), "1024", "1024", "float16")


def test_misuse_is_told(opened: OrbaxFolder) -> None:
    with refuses(CheckpointError, "'nothing'"):
        opened.read("nothing")
    with refuses(ValueError, "(1024,)", "(3,)"):
        opened.read_into("path.norm", np.empty(3, np.float32))
    with pytest.raises(ValueError, match="int32"):
        opened.read_into("path.norm", np.empty(1024, np.int32))
    with pytest.raises(ValueError, match="step 1"):
        opened.read_into("path.norm", np.empty(512, np.float32), (slice(0, 1024, 2),))
