"""JAX's cache of compiled programs, mended where a program of an earlier run cannot be read."""

import os
import re
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
_READING = "Error reading persistent compilation cache entry"
_WRITING = "Error writing persistent compilation cache entry"
_CANNOT = {
    _READING: "a compiled program of an earlier run cannot be read",
    _WRITING: "a compiled program cannot be kept for the next run",
}
_NAMED = re.compile(rf"{_READING} for '([^']+)'")


def discard_unreadable(warning: str, folder: str | None) -> bool:
    """Removes the program in JAX's cache `folder` that JAX warns it cannot read, so that the one it compiles now is
    kept; whether one was there.

    JAX writes a program in place, and never over one that is there. So half of one, which a killed process or a full
    disk leaves, would stay for good: every later run would warn and compile. Where another process is still writing
    it, what that process writes goes nowhere, and ours is kept instead.

    JAX names the program, not its file, so all of that name go; what is compiled again is kept again.
    """
    named = _NAMED.match(warning)
    if named is None or not folder or "://" in folder:  # an object store shows nothing before all of it is there
        return False
    entry = re.compile(rf"{re.escape(named[1])}(-[0-9a-f]+)?-cache")  # the name has its hash already, or not
    found = [path for path in Path(folder).glob("*-cache") if entry.fullmatch(path.name) and path.is_file()]
    try:
        for path in found:
            path.unlink(missing_ok=True)
    except OSError:  # then it stays, and the warning is for the user
        return False
    return bool(found)


def mend_and_warn_once(warn: Warn | None) -> None:
    """From now on programs that JAX cannot read are made anew without a word; where that is impossible, or one cannot
    be kept, the first of its warnings goes to `warn` in our words, the others nowhere.
    """
    show, told = warnings.showwarning, threading.Lock()

    def folder() -> str | None:
        import jax

        return jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]: made at run time

    def show_ours(message: Warning | str, category: type[Warning], *place: Any, **settings: Any) -> None:
        text = str(message)
        cannot = next((words for beginning, words in _CANNOT.items() if text.startswith(beginning)), None)
        if cannot is None:
            show(message, category, *place, **settings)
        elif discard_unreadable(text, folder()):
            return
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

    mend_and_warn_once(warn)
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
