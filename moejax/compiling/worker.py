"""Compiles the cases of one target: `python -m moejax.compiling.worker`, started by `children.compile_all`.

Reads a JSON list of cases from stdin and writes a line of JSON per case, in order. A process of its own for each
target: JAX's cache of lowered kernels does not ask for which architecture they were lowered, and XLA reads its flags
once.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moejax.compiling.cases import Case, case_of
from moejax.compiling.targets import Gpu, Tpu, target

# Tiles of XLA's own products are its defaults: choosing them takes a device to time them on.
GPU_FLAGS = "--xla_gpu_autotune_level=0"
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # else the plugins look for a driver
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# Else libtpu asks the network which machine it is on, and waits; and it lets one process at a time have the TPUs.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}


def main() -> None:
    cases = [case_of(raw) for raw in json.load(sys.stdin)]
    with tempfile.TemporaryDirectory(prefix="compile_for") as folder:
        device = target(cases[0].target)
        os.environ |= ENVIRONMENT | _environment(device, folder)
        facts = _facts(device, max(case.devices for case in cases), Path(folder))
        for case in cases:
            print(json.dumps(facts(case)), flush=True)


def _environment(device: Gpu | Tpu, folder: str) -> dict[str, str]:
    if isinstance(device, Tpu):
        return TPU_ENVIRONMENT
    return {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {GPU_FLAGS} --xla_dump_to={folder}"}


def _facts(device: Gpu | Tpu, devices: int, folder: Path) -> Callable[[Case], dict[str, Any]]:
    """What compiles a case; JAX starts here, after the environment is set."""
    if isinstance(device, Tpu):
        from moejax.compiling.tpu import TpuCompiler

        return TpuCompiler(device).facts
    from moejax.compiling.gpu import GpuCompiler

    return GpuCompiler(device, devices, folder).facts


if __name__ == "__main__":
    main()
