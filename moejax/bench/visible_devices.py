"""Which devices systems can be timed on, asked of another process: JAX would hold a GPU's memory in this one."""

import subprocess
import sys
from collections.abc import Mapping

_ASK = "import jax; print(jax.default_backend(), jax.device_count())"


def check_timed(sizes: Mapping[str, int]) -> None:
    """Raises ValueError, before anything is loaded, when a mesh (its text -> its devices) cannot be timed here."""
    split = {mesh: size for mesh, size in sizes.items() if size > 1}
    if not split:
        return
    platform, devices = visible_devices()
    for mesh, size in split.items():
        count_only = f"--simulate-devices {size} counts what they exchange"
        if platform == "cpu":
            raise ValueError(f"--mesh {mesh}: CPU devices of a mesh are simulated and not timed; {count_only}")
        if size > devices:
            raise ValueError(f"--mesh {mesh} needs {size} devices, and JAX sees {devices}; {count_only}")


def visible_devices() -> tuple[str, int]:
    """The platform that JAX takes by default, as in "cpu" or "gpu", and its number of devices.

    Raises:
        ValueError: when JAX cannot start.
    """
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ValueError(f"JAX cannot start: {reason}; unset JAX_PLATFORMS, or set it to cpu")
    platform, devices = done.stdout.split()[-2:]
    return platform, int(devices)
