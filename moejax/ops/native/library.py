"""The compiled kernels in this process: loaded and named to XLA when they are first needed."""

import ctypes
import functools
import logging
import threading
from pathlib import Path

import jax

from moejax.ops.native.build import NativeError, built_library, source_hash
from moejax.runtime.platform import current_device

KERNELS = ("linear", "experts", "attend", "norm", "route", "rotate")

_logger = logging.getLogger(__name__)
_lock = threading.Lock()


def targets() -> dict[str, str]:
    """XLA's name of every kernel, which XLA knows from then on.

    Raises:
        NativeError: when they cannot be compiled or loaded here.
    """
    with _lock:
        loaded = _load_once()
    if isinstance(loaded, NativeError):
        raise loaded
    return loaded


def cannot_run() -> str | None:
    """Why the current device cannot run the kernels, or None. Compiles them where that was not done before."""
    device = current_device()
    if device.platform != "cpu":
        return f"needs a CPU, this is {device.kind} ({device.platform})"
    try:
        targets()
    except NativeError as error:
        return str(error)
    return None


def register(path: Path, suffix: str) -> dict[str, str]:
    """Loads a compiled library and tells XLA its kernels, under names that end in `suffix`.

    Raises:
        NativeError: when the system cannot load it.
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeError(f"cannot load its library: {error}; remove it, and it is compiled again") from error
    names = {kernel: f"moejax_{kernel}_{suffix}" for kernel in KERNELS}
    for kernel, name in names.items():
        function = getattr(library, f"moejax_{kernel}")
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(function), platform="cpu")
    return names


@functools.cache
def _load_once() -> dict[str, str] | NativeError:
    """The names carry the sources' hash: a program that XLA has cached never calls kernels of another version."""
    try:
        path = built_library()
        names = register(path, source_hash())
    except NativeError as error:
        return error
    _logger.info("CPU kernels from %s", path)
    return names
