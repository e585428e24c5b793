"""What a report of a fault needs: this machine's devices, backends, versions, caches and settings."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from moejax.bench.machine import describe_machine, machine_line, versions
from moejax.cli import startup
from moejax.cli.amounts import size
from moejax.cli.console import printable

VERSIONS_OF = (
    *("moejax", "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu", "flax", "orbax-checkpoint"),
    *("numpy", "safetensors", "tokenizers", "huggingface-hub", "fastapi", "torch", "transformers", "matplotlib"),
)
# Of the environment: what changes how JAX, XLA, the compiler and the hub work. Keys and tokens are none of these.
SETTINGS = ("JAX_", "XLA_", "CUDA_VISIBLE_DEVICES", "CXX", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT")
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def describe() -> dict[str, Any]:
    """Everything that `moejax info` says of the machine, as JSON values; sizes in bytes.

    Raises:
        ValueError: when JAX cannot start.
    """
    startup.prepare_jax(quiet=True)
    import jax

    from moejax._sharding import device_memory
    from moejax.ops.native import build
    from moejax.ops.table import BACKENDS, resolve_backend
    from moejax.runtime import program_cache
    from moejax.runtime.accelerators import unused_accelerator
    from moejax.runtime.platform import current_device

    platform, memory = jax.default_backend(), device_memory()
    kinds = Counter((device.platform, device.device_kind) for device in jax.devices())
    return {
        "machine": describe_machine(),
        "versions": versions(VERSIONS_OF),
        "devices": [{"platform": kind, "kind": name, "count": count} for (kind, name), count in kinds.items()],
        "memory": {"total_bytes": memory.total_bytes, "free_bytes": memory.free_bytes},
        "unused_accelerator": unused_accelerator() if platform == "cpu" else None,
        "expert_backend": resolve_backend("auto", platform),
        "backends": {name: row.cannot(current_device()) for name, row in BACKENDS.items()},
        "caches": {kind: _cache(kind) for kind in (program_cache.KIND, build.KIND)},
        "settings": {name: value for name, value in sorted(os.environ.items()) if _is_setting(name)},
    }


def _is_setting(name: str) -> bool:
    return name.startswith(SETTINGS) and not any(word in name for word in SECRET)


def _cache(kind: str) -> dict[str, Any]:
    """One folder of the user's cache, without making it."""
    from moejax.runtime.user_cache import UntrustedFolderError, user_cache

    try:
        folder: Path = user_cache(kind)
    except UntrustedFolderError as error:
        return {"folder": None, "reason": str(error), "files": 0, "bytes": 0}
    files = [path for path in folder.glob("*") if path.is_file()]
    return {"folder": str(folder), "files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def tables(found: dict[str, Any]) -> list[RenderableType]:
    """The parts to print."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    memory = found["memory"]
    for device in found["devices"]:
        table.add_row("devices", printable(f"{device['count']} x {device['kind']} ({device['platform']})"))
    table.add_row("memory", f"{size(memory['free_bytes'])} of {size(memory['total_bytes'])} free on each device")
    if found["unused_accelerator"]:
        table.add_row("not used", printable(found["unused_accelerator"]))
    for name, reason in found["backends"].items():
        chosen = ", which auto takes here" if name == found["expert_backend"] else ""
        table.add_row("backend", printable(f"{name}: {f'no, {reason}' if reason else f'can run{chosen}'}"))
    for kind, cache in found["caches"].items():
        where = cache["folder"] or cache["reason"]
        table.add_row("cache", printable(f"{kind}: {cache['files']:,} files, {size(cache['bytes'])} in {where}"))
    for name, version in found["versions"].items():
        table.add_row("version", printable(f"{name} {version}"))
    for name, value in found["settings"].items():
        table.add_row("setting", printable(f"{name}={value}"))
    return [Text(machine_line(found["machine"]), style="bold"), table]
