"""JAX's cache of compiled programs, made safe for processes that share it and for one that is killed meanwhile."""

import functools
import os
import secrets
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Warn = Callable[[str], None]

# Settings that make a second run compile nothing: also quick compilations and small programs are kept.
# An environment variable of the same name in capitals wins, as it does in any JAX program.
_KEEP_EVERYTHING = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
# How JAX's warnings begin where its cache fails; it goes on without, and warns again for every program.
_CANNOT = {
    "Error reading persistent compilation cache entry": "a compiled program of an earlier run cannot be read",
    "Error writing persistent compilation cache entry": "a compiled program cannot be kept for the next run",
}


@functools.cache
def write_whole_programs() -> None:
    """From now on a program is written beside its place and renamed, so that whoever finds it finds all of it.

    JAX writes in place. A process that reads meanwhile finds a part, warns, and compiles the program itself. The part
    that a killed process or a full disk leaves stays for good: every later run warns and compiles, and it still stays.
    Here what JAX writes takes the place of what is there: it writes nothing that it could read.

    JAX has no public way to replace how its cache writes; tests/moejax/runtime/test_program_cache.py fails where this
    one does nothing.
    """
    from jax._src.lru_cache import LRUCache

    put_in_place = LRUCache.put

    def put(self: Any, key: str, value: bytes) -> None:
        # With a limit to its size it locks the folder; and object stores show no object before all of it is there.
        if self.eviction_enabled or "://" in str(self.path):
            put_in_place(self, key, value)
            return
        path, part = self.path / f"{key}-cache", self.path / f"{key}.{secrets.token_hex(8)}.part"
        try:
            part.write_bytes(value)
            if path.is_dir():
                os.rmdir(path)  # an empty one; whatever somebody keeps in another is not ours to remove
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    LRUCache.put = put  # pyright: ignore[reportAttributeAccessIssue]: its type is of the method that this replaces


def warn_once(warn: Warn | None) -> None:
    """From now on the first of JAX's warnings about its cache goes to `warn` in our words, the others nowhere."""
    show, told = warnings.showwarning, threading.Lock()

    def show_ours(message: Warning | str, category: type[Warning], *place: Any, **settings: Any) -> None:
        text = str(message)
        cannot = next((words for beginning, words in _CANNOT.items() if text.startswith(beginning)), None)
        if cannot is None:
            show(message, category, *place, **settings)
        elif told.acquire(blocking=False) and warn is not None:  # taken once, whichever thread compiles
            reason = text.partition("': ")[2].partition("\n")[0] or text
            variable = "JAX_COMPILATION_CACHE_DIR" if "JAX_COMPILATION_CACHE_DIR" in os.environ else "XDG_CACHE_HOME"
            warn(f"{cannot} ({reason}); if this stays, set {variable} to a folder that can be written")

    warnings.showwarning = show_ours


def keep_programs(warn: Warn | None) -> None:
    """From now on JAX keeps compiled programs for later runs, in the user's cache folder or where JAX was told to.

    warn: is given a line when they cannot be kept, which makes later runs slower and nothing else; None says nothing.
    """
    import jax

    write_whole_programs()
    warn_once(warn)
    for name, value in _KEEP_EVERYTHING.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = _writable(cache_folder())
    except (OSError, RuntimeError) as error:
        if warn is not None:
            warn(
                f"compiled programs cannot be kept for the next run ({_reason(error)}); set XDG_CACHE_HOME to a folder "
                "that can be written"
            )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def cache_folder() -> Path:
    """Where compiled programs are kept: in the user's cache folder, by the XDG base directory specification.

    Raises:
        RuntimeError: when this user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "moejax" / "xla"


def _writable(folder: Path) -> Path:
    """`folder`, made if need be; only its owner may write there, since the programs in it are run.

    Raises:
        OSError: when it cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def _reason(error: OSError | RuntimeError) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
