"""Compiled programs that processes share are whole or not there."""

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from moejax.cli import console
from moejax.runtime.program_cache import warn_once, write_whole_programs
from tests.messages import says

KEY = "jit_step-0123"


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    """JAX's cache in an empty folder."""
    from jax._src.lru_cache import LRUCache

    write_whole_programs()
    return LRUCache(str(tmp_path), max_size=-1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_read_as_it_was_written(cache: Any, tmp_path: Path) -> None:
    cache.put(KEY, b"program")
    assert cache.get(KEY) == b"program"
    assert names(tmp_path) == [f"{KEY}-cache"]


def test_what_could_not_be_read_is_replaced(cache: Any, tmp_path: Path) -> None:
    """JAX puts only what it did not find or could not read."""
    entry = tmp_path / f"{KEY}-cache"
    entry.write_bytes(b"prog")
    cache.put(KEY, b"program")
    assert cache.get(KEY) == b"program"
    entry.unlink()
    entry.mkdir()
    cache.put(KEY, b"program")
    assert cache.get(KEY) == b"program" and names(tmp_path) == [entry.name]


def test_a_folder_with_files_is_not_removed(cache: Any, tmp_path: Path) -> None:
    entry = tmp_path / f"{KEY}-cache"
    entry.mkdir()
    (entry / "notes").touch()
    with pytest.raises(OSError, match="not empty"):
        cache.put(KEY, b"program")
    assert names(tmp_path) == [entry.name] and names(entry) == ["notes"]


def test_nobody_finds_a_part(cache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is written, and after a disk that was full."""
    kind, found = type(cache.path), []

    def write_bytes(path: Any, value: bytes) -> None:
        with open(path, "wb") as file:
            file.write(value[:3])
        found.append(cache.get(KEY))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kind, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space left"):
        cache.put(KEY, b"program")
    assert found == [None] and cache.get(KEY) is None and names(tmp_path) == []
    monkeypatch.undo()
    cache.put(KEY, b"program")
    assert cache.get(KEY) == b"program"


def test_threads_that_write_the_same_program(cache: Any, tmp_path: Path) -> None:
    value = bytes(1_000_000)
    threads = [threading.Thread(target=cache.put, args=(KEY, value)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.get(KEY) == value and names(tmp_path) == [f"{KEY}-cache"]


def test_jax_writes_its_programs_so(tmp_path: Path) -> None:
    """In a process of its own, since JAX opens its cache once. Nothing is written where a program is looked for."""
    code = (
        "import sys\n"
        "from etils import epath\n"
        "from moejax.cli.startup import prepare_jax\n"
        "kind, written = type(epath.Path(sys.argv[1])), []\n"
        "write = kind.write_bytes\n"
        "kind.write_bytes = lambda path, value: (written.append(path.suffix), write(path, value))[1]\n"
        "prepare_jax()\n"
        "import jax\n"
        "jax.jit(lambda x: x + 1)(1.0)\n"
        "print(*set(written))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ".part\n"
    assert names(tmp_path) and all(name.endswith("-cache") for name in names(tmp_path))


def test_jaxs_warnings_are_one_line_of_ours(tmp_path: Path) -> None:
    """In a process of its own, too. JAX warns twice for each of two programs where the folder is a file."""
    (tmp_path / "file").touch()
    code = (
        "import warnings\n"
        "from moejax.cli.startup import prepare_jax\n"
        "prepare_jax()\n"
        "import jax\n"
        "jax.jit(lambda x: x + 1)(1.0)\n"
        "jax.jit(lambda x: x * 2)(1.0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "file")},
        capture_output=True,
        text=True,
        check=True,
    )
    says(done.stderr, "warning: ", "FileExistsError", "JAX_COMPILATION_CACHE_DIR")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_has_no_warning_of_the_cache(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    others: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: others.append(str(message))
        warn_once(None if quiet else console.warn)
        for name in ("jit_step", "jit_prefill"):
            full = "OSError: [Errno 28] No space left on device"
            warnings.warn(f"Error writing persistent compilation cache entry for '{name}': {full}", stacklevel=1)
        warnings.warn("of something else", stacklevel=1)
    assert capsys.readouterr().err.count("No space left on device") == (0 if quiet else 1)
    assert others == ["of something else"]
