"""What an accelerator's compiler makes of a split, in place of closed forms and of the kernels of files. No JAX."""

from collections.abc import Mapping
from dataclasses import dataclass

from moejax.moe.split import Split
from moejax.planning.workload import Workload

# Of a layer of decode, which the terms of moejax in hardware files stand on (scripts/fit_hardware.py).
KERNELS_PER_LAYER = 12


@dataclass(frozen=True, kw_only=True)
class CompiledCounts:
    """Of one split of a workload, on one device.

    target: what it was compiled for, a name of `moejax.compiling.targets`.
    temporary: bytes that the larger of a step and the first call of the prefill needs besides its arguments.
    kernels, prefill_kernels: of a layer of each; None where the target does not launch kernels one by one (TPUs).
    command_buffers: of a step; None there, too.
    differences: collectives that are not as the closed forms have them, in words.
    """

    target: str
    temporary: int
    kernels: float | None
    prefill_kernels: float | None
    command_buffers: int | None
    differences: tuple[str, ...] = ()

    def launches(self, *, decode: bool) -> float:
        """How many kernels of a layer are launched, over those that a hardware file counts."""
        found = self.kernels if decode else self.prefill_kernels
        return 1.0 if found is None else found / KERNELS_PER_LAYER


AllCounts = Mapping[tuple[Split, Workload], CompiledCounts]
