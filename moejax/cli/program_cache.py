"""JAX's cache of compiled programs, made safe for processes that share it and for one that is killed meanwhile."""

import functools
import os
import secrets
from typing import Any


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
