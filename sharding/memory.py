"""How much memory the devices here have."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GB = 10**9


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Memory of one device, in bytes: what it has in all, and what is free to be used now."""

    device: str
    total_bytes: int
    free_bytes: int


def device_memory(devices: Sequence[Any] | None = None) -> DeviceMemory:
    """Memory of the fullest of `devices` that belong to this process (default: the first one), in bytes.

    A CPU device's memory is this machine's (what the kernel calls available, so page cache counts as free), of which
    several simulated devices have equal shares; an accelerator's is the pool that its driver lends to JAX.

    Raises:
        RuntimeError: when a device does not say how much memory it has.
    """
    import jax  # lazily: the names of this package must not cost a JAX import

    here = (
        jax.local_devices()[:1] if devices is None else [d for d in devices if d.process_index == jax.process_index()]
    )
    if here[0].platform == "cpu":
        meminfo = _read_meminfo(Path("/proc/meminfo"))
        limit, used = _cgroup("memory.max"), _cgroup("memory.current")
        total, free = min(meminfo["MemTotal"], limit), min(meminfo["MemAvailable"], max(0, limit - used))
        return DeviceMemory(device=here[0].device_kind, total_bytes=total // len(here), free_bytes=free // len(here))
    return min((_accelerator_memory(device) for device in here), key=lambda memory: memory.free_bytes)


def _accelerator_memory(device: Any) -> DeviceMemory:
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        raise RuntimeError(f"device {device} ({device.device_kind}) does not report its memory")
    total = stats["bytes_limit"]
    return DeviceMemory(device=device.device_kind, total_bytes=total, free_bytes=total - stats.get("bytes_in_use", 0))


def _read_meminfo(path: Path) -> dict[str, int]:
    """Fields of /proc/meminfo in bytes; on a system without it (macOS), the physical memory from sysconf."""
    if not path.exists():
        import os

        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {"MemTotal": total, "MemAvailable": total}
    fields = (line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return {name: int(value.split()[0]) * 1024 for name, value in fields}


def _cgroup(name: str, folder: Path = Path("/sys/fs/cgroup")) -> int:
    """A figure of the container's memory in bytes (cgroup v2): a limit that is not set is 2^63, no cgroup uses 0."""
    path = folder / name
    text = path.read_text().strip() if path.exists() else ("max" if name == "memory.max" else "0")
    return int(text) if text != "max" else 2**63
