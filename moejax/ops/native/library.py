"""The compiled kernels in this process: named to XLA when a model is loaded or a program needs them."""

import ctypes
import functools
import logging
import threading
from pathlib import Path

import jax
import numpy as np

from moejax.ops.native.build import NativeError, built_library, check_machine, source_hash
from moejax.runtime.platform import Device

KERNELS = ("linear", "experts", "attend", "norm", "route", "rotate", "zeros", "read")

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


def pack_rows(rows: np.ndarray, packed: np.ndarray) -> None:
    """Rows [outputs, inputs] into strips [S, K, W, N] of host memory, of which they fill the first; both contiguous.

    Raises:
        NativeError: when the kernels cannot be compiled or loaded here.
    """
    outputs, inputs = rows.shape
    _, units, width, together = packed.shape
    assert rows.flags.c_contiguous and packed.flags.c_contiguous and rows.itemsize == packed.itemsize
    assert units == -(-inputs // together) and packed.shape[0] >= -(-outputs // width)
    sizes = (ctypes.c_int64(size) for size in (outputs, inputs, rows.dtype.itemsize, together, width))
    _library().moejax_pack(ctypes.c_void_p(rows.ctypes.data), *sizes, ctypes.c_void_p(packed.ctypes.data))


def cannot(device: Device) -> str | None:
    """Why a device cannot run the kernels, as far as that shows without compiling them, or None."""
    if device.platform != "cpu":
        return f"needs a CPU, this is {device.kind} ({device.platform})"
    try:
        check_machine()
    except NativeError as error:
        return str(error)
    return None


def register(path: Path, suffix: str) -> dict[str, str]:
    """Loads a compiled library and tells XLA its kernels, under names that end in `suffix`.

    Raises:
        NativeError: when the system cannot load it.
    """
    library = _opened(path)
    names = {kernel: f"moejax_{kernel}_{suffix}" for kernel in KERNELS}
    for kernel, name in names.items():
        function = getattr(library, f"moejax_{kernel}")
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(function), platform="cpu")
    return names


def _opened(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeError(
            f"cannot load its library: {error}; if CXX names a C++ compiler (CXX=g++, not gcc), remove it, and it is "
            "compiled again"
        ) from error


@functools.cache
def _path() -> Path:
    """Of this process's library, which is looked for, or compiled, once."""
    return built_library()


@functools.cache
def _library() -> ctypes.CDLL:
    """The library whose kernels `targets` has named; the system opens a file once."""
    return _opened(_path())


@functools.cache
def _load_once() -> dict[str, str] | NativeError:
    """The names carry the sources' hash: a program that XLA has cached never calls kernels of another version."""
    try:
        path = _path()
        names = register(path, source_hash())
    except NativeError as error:
        return error
    _logger.info("CPU kernels from %s", path)
    return names
