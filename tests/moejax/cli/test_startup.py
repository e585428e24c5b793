"""Where compiled programs are kept, and what happens where they cannot be."""

import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from moejax.cli import startup
from moejax.runtime import platform
from moejax.runtime import user_cache as user_caches
from moejax.runtime.user_cache import user_cache
from tests.messages import refuses, says
from tests.moejax.cli.conftest import Call
from tests.moejax.decoding.tiny_checkpoint import Tiny

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def setting(name: str) -> Any:
    return getattr(jax.config, name)


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting in the environment, and JAX's own as they were after the test."""
    for name in (*map(str.upper, SETTINGS), "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    before = {name: setting(name) for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_cache_is_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache("xla") == tmp_path / "home" / ".cache" / "moejax" / "xla"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert user_cache("xla") == tmp_path / "home" / ".cache" / "moejax" / "xla"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert user_cache("xla") == tmp_path / "cache" / "moejax" / "xla"


def test_every_program_is_kept_in_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    startup.prepare_jax()
    folder = tmp_path / "moejax" / "xla"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert setting("jax_compilation_cache_dir") == str(folder)
    assert setting("jax_persistent_cache_min_compile_time_secs") == 0
    assert setting("jax_persistent_cache_min_entry_size_bytes") == -1


def test_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "5")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 5.0)
    before = setting("jax_compilation_cache_dir")
    startup.prepare_jax()
    assert setting("jax_compilation_cache_dir") == before
    assert setting("jax_persistent_cache_min_compile_time_secs") == 5
    assert not list(tmp_path.iterdir())


def test_cache_can_be_switched_off(call: Call, tiny: Tiny, tiny_folder: Path) -> None:
    assert call("decode", tiny_folder, "--token-ids", "1", "-n", "1", "--no-compile-cache").status == 0
    assert not setting("jax_enable_compilation_cache")


@pytest.mark.parametrize("flags", [(), ("--quiet",)], ids=["loud", "quiet"])
def test_folder_that_cannot_be_written_is_a_warning(
    call: Call, tiny: Tiny, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    outcome = call("decode", tiny_folder, "--token-ids", "1 2", "-n", "1", "--dtype", "float32", *flags)
    assert outcome.status == 0
    assert outcome.out.endswith("\n")
    if flags:
        assert outcome.err == ""
    else:
        warning, statistics, *_ = outcome.err.splitlines()
        says(warning, f"{tmp_path}/file/moejax", "Not a directory", "XDG_CACHE_HOME")
        assert statistics.startswith("prompt 2 tokens | generated 1 (")


def test_user_without_a_home_is_a_warning(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Homeless(type(Path())):
        @classmethod
        def home(cls) -> Path:
            raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(user_caches, "Path", Homeless)
    startup.prepare_jax()
    says(capsys.readouterr().err, "home directory")


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'foo'\nmore"), AssertionError()])
def test_platform_that_jax_lacks(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def no_devices() -> None:
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "foo")
    monkeypatch.setattr(platform, "jax", SimpleNamespace(devices=no_devices))
    with refuses(ValueError, "JAX_PLATFORMS='foo'", "unset"):
        startup.prepare_jax(compile_cache=False)
