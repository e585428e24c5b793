"""Compiled programs of one model, each compiled when it is first needed, and counted."""

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, Sharding

from moejax.runtime.ambient import in_settled
from moejax.runtime.compiler_options import compiler_options
from moejax.runtime.program_cache import cache_hits, seal_programs


class Programs:
    """Compiled functions by key.

    host_arrays: where arguments that come from the host are put, whole on every device of the mesh.
    compiled: how many there are.
    cached: how many of them JAX's persistent cache had.
    compile_seconds: time spent making them so far (loading one from the compilation cache included).
    """

    def __init__(self, host_arrays: NamedSharding) -> None:
        self._host_arrays = host_arrays
        mesh = host_arrays.mesh
        self._options = compiler_options(mesh.devices.flat if isinstance(mesh, Mesh) else ())
        self._programs: dict[Hashable, jax.stages.Compiled] = {}
        self._lock = threading.Lock()
        self.compile_seconds = 0.0
        self.cached = 0

    @property
    def compiled(self) -> int:
        return len(self._programs)

    @property
    def summary(self) -> str:
        """How they came about, as a line for people."""
        count, new = self.compiled, self.compiled - self.cached
        if not new:
            how = "from the cache"
        elif self.cached:
            how = f"({new} compiled, the others from the cache)"
        else:
            how = "compiled"
        return f"{count} programs {how} in {self.compile_seconds:.1f} s"

    def by_key(self) -> Mapping[Hashable, jax.stages.Compiled]:
        """What has been compiled so far, for those who count what is in it."""
        with self._lock:
            return dict(self._programs)

    @in_settled
    def call(self, key: Hashable, function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()) -> Any:
        """`function(*args)` through the program called `key`, which must determine every shape in `args`.

        Arrays at the positions in `donate` are given up to the call.
        """
        with self._lock:  # threads that need the same program wait for one compilation
            program = self._programs.get(key)
            if program is None:
                began, hits = time.perf_counter(), cache_hits()
                places = jax.tree.map(self._place, args)
                function.__name__ = _name(key)  # what profilers call it
                lowered = jax.jit(function, in_shardings=places, donate_argnums=donate).lower(*args)
                program = lowered.compile(compiler_options=self._options)
                self.compile_seconds += time.perf_counter() - began
                self.cached += cache_hits() > hits
                self._programs[key] = program
                seal_programs()
        return program(*args)

    def _place(self, arg: Any) -> Sharding:
        return arg.sharding if isinstance(arg, jax.Array) else self._host_arrays


def _name(key: Hashable) -> str:
    kind = key[0] if isinstance(key, tuple) else key
    return str(kind).replace(" ", "_")
