"""Compiles for NVIDIA GPUs that are not there."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jax.experimental import topologies

from moejax.compiling.cases import LOOPS, Case
from moejax.compiling.facts import collective_facts, memory_facts
from moejax.compiling.kernels import KernelReader
from moejax.compiling.launches import count, instruction_scopes, read_thunks, step_of, thunk_names, triton_calls
from moejax.compiling.programs import lower_case
from moejax.compiling.targets import Gpu, target_config
from moejax.runtime.compiler_options import compiler_options
from moejax.runtime.platform import Device

# The first one is there where passes over thunks changed something: where they formed a command buffer.
THUNKS = ("thunk_sequence_after_thunk_passes.txt", "thunk_sequence.txt")
METADATA = "thunk_metadata.txt"


class GpuCompiler:
    """Compiles for one kind of GPU, of which there are `devices`. folder: where XLA dumps."""

    def __init__(self, gpu: Gpu, devices: int, folder: Path) -> None:
        self._gpu, self._folder = gpu, folder
        self._device = Device(platform="gpu", kind=gpu.kind, capability=gpu.capability)
        self._kernels = KernelReader(gpu, folder)
        self._devices: list[Any] = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=target_config(gpu), topology=f"1x1x{devices}"
        ).devices

    def facts(self, case: Case) -> dict[str, Any]:
        """What was compiled, as JSON has it."""
        began = time.perf_counter()
        lowered, structure = lower_case(case, self._device, self._devices)
        between = time.perf_counter()
        compiled = lowered.compile(compiler_options=compiler_options(self._devices[: case.devices]))
        compiled_at = time.perf_counter()
        hlo = compiled.as_text()
        assert hlo is not None, "XLA:GPU shows every program"
        program, names = read_thunks(dumped(self._folder, *THUNKS)), thunk_names(dumped(self._folder, METADATA))
        ours = triton_calls(hlo)
        of_name = instruction_scopes(hlo)
        scopes = {number: of_name.get(name, "") for number, name in names.items()}
        step = step_of(program) if case.program in LOOPS else program
        found = {
            "case": asdict(case),
            "backend": structure.backend,
            "memory": memory_facts(case, structure, compiled, self._gpu.figures.memory_bytes),
            "collectives": collective_facts(case, structure, hlo),
            "launches": asdict(count(step, scopes)),
            **self._kernels.read(
                step, {number for number, name in names.items() if name in ours}, self._folder.glob("*.ptx")
            ),
        }
        for file in self._folder.iterdir():
            file.unlink()
        seconds = {
            "lower": between - began,
            "compile": compiled_at - between,
            "read": time.perf_counter() - compiled_at,
        }
        return found | {"seconds": {name: round(number, 1) for name, number in seconds.items()}}


def dumped(folder: Path, *kinds: str) -> str:
    """What XLA dumped of a program, of the first of `kinds` that there is.

    Raises:
        ValueError: where there is none, or of several programs.
    """
    for kind in kinds:
        if found := list(folder.glob(f"*.{kind}")):
            if len(found) > 1:
                raise ValueError(f"expected one program in {folder}, got {', '.join(file.name for file in found)}")
            return found[0].read_text()
    raise ValueError(f"XLA dumped no {' or '.join(kinds)}: is another --xla_dump_to in XLA_FLAGS?")
