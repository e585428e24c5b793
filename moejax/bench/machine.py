"""Where and when a benchmark ran: machine, versions, date, command; and which devices there are. Imports no JAX."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moejax.runtime.huge_pages import setting

VERSIONS_OF = ("moejax", "jax", "jaxlib", "numpy", "torch", "transformers", "llama-cpp-python", "gguf", "vllm")


def describe_run(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Everything that has to stand beside a number: `command`, `date`, `machine`, `versions`."""
    return {
        "command": shlex.join(["moejax", *(sys.argv[1:] if arguments is None else arguments)]),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": describe_machine(),
        "versions": versions(),
    }


def describe_machine() -> dict[str, Any]:
    """The processor as the kernel names it, cores that this process may use, memory, system, setting of huge pages."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "huge_pages": setting(),
        "features": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in _cpu_flags()],
    }


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    features, pages = ", ".join(machine["features"]), machine.get("huge_pages")
    return (
        f"{machine['processor']}{f' ({features})' if features else ''}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, {machine['system']}{f', huge pages: {pages}' if pages else ''}"
    )


def versions(names: Sequence[str] = VERSIONS_OF) -> dict[str, str]:
    """Versions of what is installed of these, with Python's and, in a source tree, its commit."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a peer that is not here has no version to state
    return found | ({"commit": commit} if (commit := _commit()) else {})


def check_timed(sizes: Mapping[str, int]) -> None:
    """Raises ValueError, before anything is loaded, when a mesh (its text -> its devices) cannot be timed here."""
    split = {mesh: size for mesh, size in sizes.items() if size > 1}
    if not split:
        return
    kind, devices = visible_devices()
    for mesh, size in split.items():
        count_only = f"--simulate-devices {size} counts what they exchange"
        if kind == "cpu":
            raise ValueError(f"--mesh {mesh}: CPU devices of a mesh are simulated and not timed; {count_only}")
        if size > devices:
            raise ValueError(f"--mesh {mesh} needs {size} devices, and JAX sees {devices}; {count_only}")


def visible_devices() -> tuple[str, int]:
    """The platform that JAX takes by default, as in "cpu" or "gpu", and its number of devices.

    Another process is asked: JAX would hold a GPU's memory in this one.

    Raises:
        ValueError: when JAX cannot start.
    """
    ask = "import jax; print(jax.default_backend(), jax.device_count())"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ValueError(f"JAX cannot start: {reason}; unset JAX_PLATFORMS, or set it to cpu")
    name, count = done.stdout.split()[-2:]
    return name, int(count)


def _commit() -> str | None:
    """The commit of a source tree, with + where files have changed since; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None  # no git here, or a tree that is not git's: nothing to state


def _cpuinfo(key: str) -> str | None:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return set((_cpuinfo("flags") or "").split())
