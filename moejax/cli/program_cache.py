"""JAX's cache of compiled programs, made safe for processes that share it and for one that is killed meanwhile."""

import functools
import os
import secrets
import threading
import warnings
from typing import Any

from moejax.cli import console

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

    JAX has no public way to replace how its cache writes; tests/moejax/cli/test_program_cache.py fails where this one
    does nothing.
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


def tell_failures_once(*, quiet: bool) -> None:
    """From now on the first of JAX's warnings about its cache is one of ours, the others are none; all if `quiet`."""
    show, told = warnings.showwarning, threading.Lock()

    def show_ours(message: Warning | str, category: type[Warning], *place: Any, **settings: Any) -> None:
        text = str(message)
        cannot = next((words for beginning, words in _CANNOT.items() if text.startswith(beginning)), None)
        if cannot is None:
            show(message, category, *place, **settings)
        elif told.acquire(blocking=False) and not quiet:  # taken once, whichever thread compiles
            reason = text.partition("': ")[2].partition("\n")[0] or text
            variable = "JAX_COMPILATION_CACHE_DIR" if "JAX_COMPILATION_CACHE_DIR" in os.environ else "XDG_CACHE_HOME"
            console.warn(f"{cannot} ({reason}); if this stays, set {variable} to a folder that can be written")

    warnings.showwarning = show_ours
