"""The expert backends that this machine can run, by interpretation where they are kernels."""

from moejax.moe.experts import BACKENDS, BackendName
from moejax.ops.kernels import KERNELS
from moejax.runtime.platform import current_device

# `tokamax` is the only one that may be missing: its package is optional. Where it is installed, it is tested as well.
RUNNABLE: list[BackendName] = [
    name for name in BACKENDS if name != "tokamax" or KERNELS["interpret_tokamax"].cannot(current_device()) is None
]
KERNEL_BACKENDS: list[BackendName] = [name for name in RUNNABLE if name in ("pallas", "tokamax")]
