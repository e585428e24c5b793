"""Files that are named as config.json and are none."""

from pathlib import Path

import pytest

from moejax.families.config import named_config, read_config_json


def test_a_missing_file() -> None:
    with pytest.raises(
        ValueError, match="nowhere.json: there is no such file; a checkpoint folder holds a config.json"
    ):
        named_config("nowhere.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON (Expecting property name"),
        (b"", "not valid JSON (Expecting value"),
        (b'{"a": "\xff"}', "not valid JSON ('utf-8' codec can't decode"),
        (b"<html>", "not valid JSON (Expecting value"),
        (b"[1]", "expected a JSON object, got list"),
        (b"null", "expected a JSON object, got NoneType"),
    ],
)
def test_a_file_that_is_no_json_object(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_config_json(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        read_config_json(tmp_path)


def test_a_file_nested_too_deeply(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match="not valid JSON"):
        read_config_json(path)


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.symlink_to("blobs/1234")
    with pytest.raises(ValueError) as caught:
        read_config_json(path)
    assert str(caught.value) == f"{path}: is a link to blobs/1234, where there is no file; download it again"
