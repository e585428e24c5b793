"""Files that are named as config.json and are none."""

from pathlib import Path

import pytest

from moejax.families.hf_config import read_config_json
from moejax.families.table import named_config
from tests.messages import refuses


def test_a_missing_file() -> None:
    with refuses(ValueError, "nowhere.json", "config.json"):
        named_config("nowhere.json")


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"{", ("JSON",)),
        (b"", ("JSON",)),
        (b'{"a": "\xff"}', ("JSON", "'utf-8'")),
        (b"<html>", ("JSON",)),
        (b"[1]", ("JSON list", "object")),
        (b"null", ("JSON NoneType", "object")),
    ],
)
def test_a_file_that_is_no_json_object(tmp_path: Path, content: bytes, facts: tuple[str, ...]) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with refuses(ValueError, path, *facts) as caught:
        read_config_json(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with refuses(ValueError, tmp_path, "no such file"):
        read_config_json(tmp_path)


def test_a_file_nested_too_deeply(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match="not valid JSON"):
        read_config_json(path)


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.symlink_to("blobs/1234")
    with refuses(ValueError, path, "blobs/1234", "download"):
        read_config_json(path)


def test_a_key_that_is_there_many_times(tmp_path: Path) -> None:
    """Found by looking at each once: comparing each with all others would take minutes."""
    path = tmp_path / "config.json"
    path.write_text("{" + ", ".join(f'"key_{number % 70_000}": 1' for number in range(100_000)) + "}")
    with refuses(ValueError, path, "'key_0'", "twice"):
        read_config_json(path)


def test_a_file_too_large_to_be_one(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(5_000_000)
    with refuses(ValueError, "config.json", "5000000", "4000000"):
        read_config_json(tmp_path / "config.json")


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"vocab_size": 3}', encoding="utf-8-sig")
    assert read_config_json(path) == {"vocab_size": 3}
    for encoding in ("utf-16", "utf-16-be", "utf-32"):
        path.write_text('{"vocab_size": 3}', encoding=encoding)
        with refuses(ValueError, path, encoding.upper(), "save", "UTF-8") as caught:
            read_config_json(path)
        assert "download" not in str(caught.value)


def test_zeros_are_damage(tmp_path: Path) -> None:
    """Which could be UTF-32 by its first bytes."""
    path = tmp_path / "config.json"
    path.write_bytes(bytes(100))
    with refuses(ValueError, path, "not valid JSON", "download"):
        read_config_json(path)
