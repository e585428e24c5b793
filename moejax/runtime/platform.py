"""What the device can do. The one place where the code asks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device that programs are traced for.

    platform: "cpu", "gpu" or "tpu".  kind: its name, for messages.
    capability: CUDA compute capability, (9, 0) for a Hopper; None where there is none.
    """

    platform: str
    kind: str
    capability: tuple[int, int] | None = None


H100 = Device(platform="gpu", kind="NVIDIA H100 80GB HBM3", capability=(9, 0))
A100 = Device(platform="gpu", kind="NVIDIA A100-SXM4-80GB", capability=(8, 0))

# KiB of shared memory that one thread block may take, by compute capability (CUDA C++ Programming Guide, table
# "Technical Specifications per Compute Capability"). A capability that is not listed gets the smallest of them.
SHARED_MEMORY_KIB = {
    (8, 0): 163,
    (8, 6): 99,
    (8, 7): 163,
    (8, 9): 99,
    (9, 0): 227,
    (10, 0): 227,
    (10, 3): 227,
    (12, 0): 99,
    (12, 1): 99,
}


def visible_devices() -> list[Any]:
    """JAX's devices, which start it.

    Raises:
        ValueError: where it cannot start, with what to do.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX 0.10 asserts where a platform's plugin is not installed
        reason = str(error).partition("\n")[0] or "it has no plugin for this platform"
        raise ValueError(
            f"JAX cannot start with JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}: {reason}; unset it, or set "
            "it to cpu"
        ) from error


_traced_for: ContextVar[Device | None] = ContextVar("traced_for", default=None)


def current_device() -> Device:
    """The device that programs are traced for: JAX's first one, or that of `tracing_for`."""
    assumed = _traced_for.get()
    if assumed is not None:
        return assumed
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    # On AMD GPUs the attribute is a name like "gfx942".
    parts = str(capability).split(".")
    numbers = (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(map(str.isdigit, parts)) else None
    return Device(platform=device.platform, kind=device.device_kind, capability=numbers)


@contextmanager
def tracing_for(device: Device) -> Iterator[None]:
    """Traces for a device that this machine need not have, so that a program can be lowered for it."""
    token = _traced_for.set(device)
    try:
        yield
    finally:
        _traced_for.reset(token)


def shared_memory_bytes() -> int:
    """Shared memory that one thread block of the current device may take; a Hopper's where there is no GPU.

    Without a GPU the number only shapes blocks that are interpreted.
    """
    capability = current_device().capability or (9, 0)
    return 1024 * SHARED_MEMORY_KIB.get(capability, min(SHARED_MEMORY_KIB.values()))


def smallest_product(dtype: jax.typing.DTypeLike) -> int:
    """Fewest rows of a matrix product worth computing.

    XLA:CPU's library takes a 16-bit product of two rows or more; one of a single row falls to a loop ten times slower
    (docs/decisions.md), so one row is computed as two.
    """
    return 2 if current_device().platform == "cpu" and jnp.dtype(dtype).itemsize == 2 else 1
