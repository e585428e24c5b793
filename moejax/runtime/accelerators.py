"""Accelerators of this machine that JAX does not use: found in the system's files, without starting anything."""

import functools
import logging
import os
import re
from importlib.util import find_spec
from pathlib import Path

_logger = logging.getLogger(__name__)

ROOT = Path("/")
CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
# The least major version of NVIDIA's driver that each takes (CUDA Toolkit Release Notes, minor version compatibility).
CUDA_DRIVERS = {"cuda13": 580, "cuda12": 525}
GOOGLE = "0x1ae0"  # as a PCI vendor, whose devices are TPUs
WANTED = "JAX_PLATFORMS=cpu says that the CPU is meant"


def unused_accelerator() -> str | None:
    """Why an accelerator that is here is not used by a JAX that runs on the CPU, with the command that helps.

    None where there is none. Whether JAX runs on the CPU because it was told to is the caller's to know.
    """
    if any((ROOT / "dev").glob("nvidia[0-9]*")):
        return _nvidia()
    vendors = (ROOT / "sys/bus/pci/devices").glob("*/vendor")
    if any(path.read_text().strip() == GOOGLE for path in vendors):
        if find_spec("libtpu"):
            return f"this machine has a TPU that JAX cannot use, though libtpu is installed: {_ask('tpu')}"
        return f"this machine has a TPU that JAX does not use: pip install 'moejax[tpu]' ({WANTED})"
    return None


def _nvidia() -> str:
    card = "this machine has an NVIDIA card that JAX"
    if installed := next((name for name in CUDA_PLUGINS if find_spec(name)), None):
        return f"{card} cannot use, though {installed} is installed: {_ask('cuda')}"
    driver = _driver()
    fitting = [extra for extra, least in CUDA_DRIVERS.items() if driver is None or driver >= least]
    if not fitting:
        least = min(CUDA_DRIVERS.values())
        return f"{card} does not use, and its driver is {driver}: install {least} or newer, then 'moejax[cuda12]'"
    # A driver that does not say its version is in a container: the older CUDA runs with more of them.
    extra = fitting[-1] if driver is None else fitting[0]
    return f"{card} does not use: pip install 'moejax[{extra}]' ({WANTED})"


def _driver() -> int | None:
    """The major version of NVIDIA's driver."""
    path = ROOT / "proc/driver/nvidia/version"
    found = re.search(r"\b(\d{3,})\.\d+", path.read_text()) if path.exists() else None
    return int(found[1]) if found else None


def _ask(platform: str) -> str:
    return f'JAX_PLATFORMS={platform} python -c "import jax; jax.devices()" says why ({WANTED})'


@functools.cache
def tell_unused_accelerator() -> None:
    """Logs it as a warning, once, if JAX runs on the CPU without having been told to."""
    import jax

    if not _told() and jax.default_backend() == "cpu" and (reason := unused_accelerator()):
        _logger.warning("%s", reason)


def _told() -> str | None:
    """The platforms that JAX was told to use."""
    import jax

    return os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
