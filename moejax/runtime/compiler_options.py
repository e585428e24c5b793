"""What XLA is asked for beyond its defaults when it compiles for a mesh of GPUs."""

import os
from collections.abc import Iterable
from typing import Any

# XLA's own all-reduce: up to 256 KB each device reads all others' numbers in one kernel, up to a few MB in two steps;
# larger ones, and where devices cannot read each other's memory, are NCCL's (docs/kernels.md).
_OWN_ALL_REDUCE = "xla_gpu_unsupported_use_all_reduce_one_shot_kernel"


def compiler_options(devices: Iterable[Any]) -> dict[str, bool | str]:
    """Options of `jax.stages.Lowered.compile` for programs over these devices.

    Whoever names the option in XLA_FLAGS has it as written there.
    """
    over_gpus = [device for device in devices if device.platform == "gpu"]
    if len(over_gpus) < 2 or _OWN_ALL_REDUCE in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {_OWN_ALL_REDUCE: True}
