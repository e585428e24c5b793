"""JAX's cache of compiled programs, mended where a program of an earlier run cannot be read."""

import atexit
import functools
import hashlib
import logging
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moejax.runtime.user_cache import UntrustedFolderError, owned, private_folder

Warn = Callable[[str], None]
_logger = logging.getLogger(__name__)

KIND = "xla"  # in the user's cache folder
_kept: "SealedPrograms | None" = None

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
        folder = private_folder(KIND)
        with tempfile.TemporaryFile(dir=folder):
            sealed = SealedPrograms(folder)
    except UntrustedFolderError as error:
        if warn is not None:
            warn(f"compiled programs of earlier runs are not used, and none are kept: {error}")
        return
    except OSError as error:
        if warn is not None:
            warn(
                f"compiled programs cannot be kept for the next run ({error.filename}: {error.strerror}); set "
                "XDG_CACHE_HOME to a folder that can be written"
            )
        return
    global _kept
    _kept = sealed
    jax.config.update("jax_compilation_cache_dir", str(folder))


def keep_programs_by_default() -> None:
    """`keep_programs` for whoever uses moejax as a library, unless JAX has a cache already, or is to have none."""
    import jax

    told = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]: made at run time
    if told is None and jax.config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        keep_programs(_logger.warning)


def seal_programs() -> None:
    """Lists what was compiled since, if programs are kept."""
    if _kept is not None:
        _kept.seal()


@functools.cache
def _hits() -> threading.local:
    """Counts for each thread the programs that JAX finds in its cache, from the first call on."""
    import jax

    found = threading.local()

    def count(event: str, **_: object) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            found.count = getattr(found, "count", 0) + 1

    jax.monitoring.register_event_listener(count)
    return found


def cache_hits() -> int:
    """How many programs this thread has found in JAX's persistent cache since this was first called."""
    return getattr(_hits(), "count", 0)


class SealedPrograms:
    """The programs in a private folder whose digest is known; the others are removed when this is made.

    JAX trusts what it finds. So a list beside its files, as `sha256sum` writes and checks it, says what each was when
    it had been compiled: one that was damaged since, or that nobody lived to list, is compiled again.
    """

    def __init__(self, folder: Path) -> None:
        self._list = folder / "SHA256SUMS"
        self._sealed: set[str] = set()
        listed = self._read()
        for path in folder.glob("*-cache"):
            if owned(path) and (_digest(path), path.name) in listed:
                self._sealed.add(path.name)
            else:
                path.unlink(missing_ok=True)

    @property
    def names(self) -> set[str]:
        """Of the files that are programs."""
        return set(self._sealed)

    def seal(self) -> None:
        """Lists what was compiled since. Several processes may do so at once: each appends whole lines."""
        new = [path for path in self._list.parent.glob("*-cache") if path.name not in self._sealed]
        lines = []
        for path in new:
            try:
                lines.append(f"{_digest(path)}  {path.name}\n")
            except FileNotFoundError:  # another process found it without a digest
                continue
            self._sealed.add(path.name)
        if lines:
            try:
                with open(os.open(self._list, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w") as end:
                    end.write("".join(lines))
            except OSError:  # a full disk: what is not listed is compiled again
                pass

    def _read(self) -> set[tuple[str, str]]:
        try:
            if not owned(self._list):
                return set()
            lines = self._list.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return set()
        return {(digest, name) for digest, _, name in (line.partition("  ") for line in lines)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


atexit.register(seal_programs)  # also what was compiled outside of `Programs`
