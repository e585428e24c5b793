"""The accelerators that programs are compiled for: what the compiler is told of each. Imports no JAX.

Memory, bandwidth and cache come from the hardware files of `moejax/planning/devices`; what those need not know is here,
from data sheets and the table "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from moejax.planning.hardware import Hardware
from moejax.planning.hardware_file import load_hardware

TargetName = Literal["h200", "h100", "a100", "b200", "l40s", "rtx-pro-6000"]
TARGET_NAMES: tuple[TargetName, ...] = get_args(TargetName)
RESERVED = 1024  # bytes of shared memory that the system takes of each block
REGISTERS = 65536  # of a multiprocessor
WARP = 32


@dataclass(frozen=True, kw_only=True)
class Multiprocessor:
    """What one multiprocessor has. shared_kib: of shared memory; a block may take one KiB less.

    threads, blocks: most at a time.  lanes: of float32.
    """

    shared_kib: int
    threads: int
    blocks: int
    lanes: int

    def resident(self, threads: int, registers: int, shared: int) -> tuple[int, str]:
        """Blocks of `threads` that fit at a time, and what keeps further ones out.

        registers: of each thread.  shared: bytes that each block takes.
        """
        warps = -(-threads // WARP)
        of_warp = -(-registers * WARP // 256) * 256  # they are given out in units of 256
        room = {
            "threads": self.threads // (warps * WARP),
            "registers": REGISTERS // (of_warp * warps) if registers else self.blocks,
            "shared memory": self.shared_kib * 1024 // (shared + RESERVED),
            "blocks": self.blocks,
        }
        least = min(room, key=lambda name: room[name])
        return room[least], least


Capability = tuple[int, int]
MULTIPROCESSORS: Mapping[Capability, Multiprocessor] = {
    (8, 0): Multiprocessor(shared_kib=164, threads=2048, blocks=32, lanes=64),
    (8, 9): Multiprocessor(shared_kib=100, threads=1536, blocks=24, lanes=128),
    (9, 0): Multiprocessor(shared_kib=228, threads=2048, blocks=32, lanes=128),
    (10, 0): Multiprocessor(shared_kib=228, threads=2048, blocks=32, lanes=128),
    (12, 0): Multiprocessor(shared_kib=100, threads=1536, blocks=24, lanes=128),
}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A CUDA device that need not be there.

    hardware: the name of its hardware file.  kind: what JAX calls it.  clock: GHz, boosted.
    """

    hardware: str
    kind: str
    capability: Capability
    multiprocessors: int
    clock: float

    @property
    def multiprocessor(self) -> Multiprocessor:
        return MULTIPROCESSORS[self.capability]

    @property
    def figures(self) -> Hardware:
        """Its hardware file."""
        return load_hardware(self.hardware)


TARGETS: Mapping[TargetName, Gpu] = {
    "h200": Gpu(hardware="h200", kind="NVIDIA H200", capability=(9, 0), multiprocessors=132, clock=1.98),
    "h100": Gpu(hardware="h100-sxm", kind="NVIDIA H100 80GB HBM3", capability=(9, 0), multiprocessors=132, clock=1.98),
    "a100": Gpu(hardware="a100-80gb", kind="NVIDIA A100-SXM4-80GB", capability=(8, 0), multiprocessors=108, clock=1.41),
    "b200": Gpu(hardware="b200", kind="NVIDIA B200", capability=(10, 0), multiprocessors=148, clock=1.965),
    "l40s": Gpu(hardware="l40s", kind="NVIDIA L40S", capability=(8, 9), multiprocessors=142, clock=2.52),
    "rtx-pro-6000": Gpu(
        hardware="rtx-pro-6000",
        kind="NVIDIA RTX PRO 6000 Blackwell Server Edition",
        capability=(12, 0),
        multiprocessors=188,
        clock=2.6,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Tpu:
    """TPUs that need not be there. topology: their generation and how many chips in each direction, `v5e:2x4`.

    hardware: the name of their hardware file.
    """

    topology: str
    hardware: str

    @property
    def devices(self) -> int:
        """How many JAX sees: one a chip, or two."""
        generation, _, sizes = self.topology.partition(":")
        return math.prod(map(int, sizes.split("x"))) * OF_A_CHIP.get(generation, 1)

    @property
    def figures(self) -> Hardware:
        """Their hardware file."""
        return load_hardware(self.hardware)


# Hardware files of TPUs by the generation that begins a topology.
TPUS: Mapping[str, str] = {"v5e": "tpu-v5e", "v5p": "tpu-v5p", "v6e": "tpu-v6e", "tpu7x": "tpu7x"}
OF_A_CHIP: Mapping[str, int] = {"tpu7x": 2}  # devices
_TOPOLOGY = re.compile(r"(\w+):\d+(?:x\d+){1,2}")


def target(name: str) -> Gpu | Tpu:
    """The target called `name` in any case: one of TARGETS, or a topology of TPUs.

    Raises:
        ValueError: for a name that is not known, with those that are.
    """
    known: Mapping[Any, Gpu] = TARGETS
    asked = name.lower()
    if asked in known:
        return known[asked]
    found = _TOPOLOGY.fullmatch(asked)
    if found is None or found[1] not in TPUS:
        raise ValueError(
            f"unknown target {name!r}; the known ones are {', '.join(TARGETS)}, and TPUs as {', '.join(TPUS)} "
            "with a topology: v5e:2x4"
        )
    return Tpu(topology=asked, hardware=TPUS[found[1]])


def gpu_target(name: str) -> Gpu:
    """The GPU called `name`.

    Raises:
        ValueError: as `target`, and for TPUs.
    """
    found = target(name)
    if isinstance(found, Tpu):
        raise ValueError(f"expected a GPU, got {name!r}")
    return found


def target_config(gpu: Gpu) -> str:
    """The device as a text of XLA's GpuTargetConfigProto (xla/stream_executor/device_description.proto)."""
    one, figures, (major, minor) = gpu.multiprocessor, gpu.figures, gpu.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: {WARP}
  shared_memory_per_block: 49152 shared_memory_per_core: {one.shared_kib * 1024}
  shared_memory_per_block_optin: {one.shared_kib * 1024 - RESERVED}
  threads_per_core_limit: {one.threads} core_count: {gpu.multiprocessors} fpus_per_core: {one.lanes}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(figures.bandwidth)} l2_cache_size: {figures.cache_bytes} clock_rate_ghz: {gpu.clock}
  device_memory_size: {figures.memory_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: {REGISTERS} registers_per_block_limit: {REGISTERS}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{gpu.kind}"
"""
