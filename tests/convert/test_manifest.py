"""manifest.json: written the same for the same conversion, and not believed when it is read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moejax._convert import CheckpointError, read_manifest
from moejax._convert.manifest import ArrayEntry, Manifest
from tests.messages import refuses

ENTRY = ArrayEntry(
    item="layers.0.attention",
    key="q",
    shape=(4, 2),
    dtype="BF16",
    checksum="crc32:0123abcd",
)
MANIFEST = Manifest(
    format="orbax",
    moejax_version="1.2",
    source_format="safetensors",
    source_files={"model.safetensors": "ab"},
    options={"--dtype": "float32"},
    ignored={"a.inv_freq": "computed"},
    arrays={"layers.0.attention.q": ENTRY},
    files={"config.json": "cd"},
)


def written(folder: Path, **changes: Any) -> Path:
    (folder / "manifest.json").write_text(json.dumps(json.loads(MANIFEST.to_json()) | changes))
    return folder


def entry(**changes: Any) -> dict[str, Any]:
    return {"arrays": {"q": {**vars(ENTRY), **changes}}}


def test_reads_what_it_writes(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    assert read_manifest(written(tmp_path)) == MANIFEST


def test_reads_what_format_version_2_wrote(tmp_path: Path) -> None:
    assert read_manifest(written(tmp_path, format_version=2, **entry(chunks=["crc32:01234567"]))) == replace(
        MANIFEST, arrays={"q": ENTRY}
    )


def test_another_programs_manifest_is_none_of_ours(tmp_path: Path) -> None:
    assert read_manifest(written(tmp_path, format="vite")) is None
    assert read_manifest(written(tmp_path, format=["moejax-orbax"])) is None
    for text in ("", "[1, 2]", "no JSON"):
        (tmp_path / "manifest.json").write_text(text)
        assert read_manifest(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"format_version": 1}, ("format_version", "1", "2", "3")),
        ({"format_version": 4}, ("format_version", "4", "2", "3")),
        ({"arrays": {}}, ("lists no arrays",)),
        ({"arrays": []}, ("arrays", "[]", "object")),
        ({"files": {"config.json": 1}}, ("files", "{'config.json': 1}", "object")),
        ({"arrays": {"q": {"item": "a"}}}, ("'q'", "{'item': 'a'}", "item, key, shape")),
        (entry(item="../../etc"), ("'q'", "'../../etc'")),
        (entry(item="a/b"), ("item 'a/b'",)),
        (entry(item=".."), ("has the item '..'",)),
        (entry(key="/etc/passwd"), ("key '/etc/passwd'",)),
        (entry(shape=[2, -1]), ("has shape [2, -1]",)),
        (entry(shape=[2**40, 2**40]), ("has shape [1099511627776, 1099511627776]",)),
        (entry(shape=[True]), ("has shape [True]",)),
        (entry(dtype="I8"), ("has dtype 'I8', expected BF16, F16, F32, F64",)),
        (entry(dtype=["BF16"]), ("has dtype ['BF16']",)),
        (entry(checksum="sha256:ab"), ("checksum 'sha256:ab'",)),
        (entry(finite=1), ("has finite 1",)),
    ],
)
def test_names_what_is_wrong(tmp_path: Path, changes: dict[str, Any], facts: tuple[str, ...]) -> None:
    with refuses(CheckpointError, *facts):
        read_manifest(written(tmp_path, **changes))


def test_half_a_manifest_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(MANIFEST.to_json()[:100])
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        read_manifest(tmp_path)
