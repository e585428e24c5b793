"""What is run in a later process is only taken from where nobody else can have put it."""

import os
import stat
from pathlib import Path

import pytest

from moejax.runtime.user_cache import UntrustedFolderError, owned, private_folder, user_cache
from tests.messages import refuses


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_for_its_owner_alone(cache: Path) -> None:
    folder = private_folder("native")
    assert folder == user_cache("native") == cache / "moejax" / "native"
    assert (mode(folder), mode(folder.parent)) == (0o700, 0o700)


def test_others_that_could_read_it_no_longer_can(cache: Path) -> None:
    (cache / "moejax" / "xla").mkdir(parents=True, mode=0o755)
    assert mode(private_folder("xla")) == 0o700


@pytest.mark.parametrize("part", ["moejax", "moejax/native"])
@pytest.mark.parametrize("bits", [0o777, 0o770, 0o722])
def test_a_folder_that_others_can_write_is_refused(cache: Path, part: str, bits: int) -> None:
    private_folder("native")
    (cache / part).chmod(bits)
    with refuses(UntrustedFolderError, cache / part, f"{bits:o}", "XDG_CACHE_HOME"):
        private_folder("native")


@pytest.mark.parametrize("part", ["moejax", "moejax/native"])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_refused(cache: Path, tmp_path: Path, part: str, there: bool) -> None:
    (cache / part).parent.mkdir(parents=True)
    if there:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
    (cache / part).symlink_to(tmp_path / "elsewhere")
    with refuses(UntrustedFolderError, cache / part, "link", "XDG_CACHE_HOME"):
        private_folder("native")


def test_a_link_of_the_users_on_the_way_there_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "scratch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert private_folder("xla").resolve() == tmp_path / "scratch" / "moejax" / "xla"


def test_another_owner_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private_folder("native")
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    with refuses(UntrustedFolderError, cache / "moejax", us, us + 1):
        private_folder("native")


def test_a_file_in_its_place_is_refused(cache: Path) -> None:
    (cache / "moejax").mkdir(parents=True)
    (cache / "moejax" / "native").touch()
    with refuses(UntrustedFolderError, cache / "moejax" / "native", "not a folder"):
        private_folder("native")


def test_which_files_are_our_own(cache: Path) -> None:
    folder = private_folder("native")
    (folder / "ours").touch(0o600)
    (folder / "link").symlink_to("ours")
    (folder / "theirs").touch()
    (folder / "theirs").chmod(0o666)
    assert [path.name for path in sorted(folder.iterdir()) if owned(path)] == ["ours"]
