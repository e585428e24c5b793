"""Compiles for TPUs that are not there."""

import time
from dataclasses import asdict
from typing import Any

from jax.experimental import topologies

from moejax.compiling.cases import LOOPS, Case
from moejax.compiling.facts import collective_facts, memory_facts
from moejax.compiling.programs import lower_case
from moejax.compiling.targets import Tpu
from moejax.compiling.tpu_steps import count_step
from moejax.runtime.platform import Device


class TpuCompiler:
    """Compiles for the devices of one topology."""

    def __init__(self, tpu: Tpu) -> None:
        self._tpu = tpu
        self._devices: list[Any] = topologies.get_topology_desc(platform="tpu", topology_name=tpu.topology).devices
        self._device = Device(platform="tpu", kind=self._devices[0].device_kind)

    def facts(self, case: Case) -> dict[str, Any]:
        """What was compiled, as JSON has it. Bytes accessed are XLA's own estimate, of a step or of the call."""
        began = time.perf_counter()
        lowered, structure = lower_case(case, self._device, self._devices)
        between = time.perf_counter()
        compiled = lowered.compile()
        compiled_at = time.perf_counter()
        hlo, cost = compiled.as_text(), compiled.cost_analysis()
        assert hlo is not None and cost is not None, "XLA:TPU shows every program, and what it costs"
        return {
            "case": asdict(case),
            "backend": structure.backend,
            "memory": memory_facts(case, structure, compiled, self._tpu.figures.memory_bytes),
            "collectives": collective_facts(case, structure, hlo, substitutes=True),
            "operations": asdict(count_step(hlo, in_loop=case.program in LOOPS)),
            "bytes_accessed": round(cost["bytes accessed"]),
            "seconds": {"lower": round(between - began, 1), "compile": round(compiled_at - between, 1)},
        }
