"""What each kernel of a step takes of a multiprocessor and does with it. Imports no JAX."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from moejax.compiling.launches import Launch, Thunk
from moejax.compiling.machine_code import Assembled, Code
from moejax.compiling.targets import Gpu
from moejax.compiling.tools import assemble

_ENTRY = re.compile(r"\.entry\s+([\w$]+)")


class KernelReader:
    """Reads kernels of one kind of device, each once however many programs have it. folder: for files of the tools."""

    def __init__(self, gpu: Gpu, folder: Path) -> None:
        self._gpu, self._folder = gpu, folder
        self._read: dict[tuple[str, bool], tuple[Assembled, Code | None]] = {}

    def read(self, step: Thunk, own: Collection[int], ptx: Iterable[Path]) -> dict[str, Any]:
        """The kernels of a step as JSON has them: ours (thunks numbered in `own`) one by one, XLA's in sum.

        ptx: the files that XLA dumped.
        """
        texts = {entry: text for file in ptx for text in [file.read_text()] for entry in _ENTRY.findall(text)}
        launched = [(one.launch, one.number in own) for one in step.walk() if one.launch]
        ours, theirs = (Counter(launch for launch, is_own in launched if is_own is wanted) for wanted in (True, False))
        others = [self._assemble(texts[name], disassembled=False)[0] for name in sorted({one.kernel for one in theirs})]
        return {
            "kernels": {
                _key(launch, ours): self._one(launch, texts[launch.kernel]) | {"launches": number}
                for launch, number in ours.items()
            },
            "xla_kernels": {
                "distinct": len(others),
                "registers": max((one.registers for one in others), default=0),
                "spilled": sum(one.spilled for one in others),
            },
        }

    def _one(self, launch: Launch, ptx: str) -> dict[str, Any]:
        assembled, code = self._assemble(ptx, disassembled=True)
        assert code is not None, "it was asked for"
        shared = max(launch.shared, assembled.shared)
        blocks, limit = self._gpu.multiprocessor.resident(launch.threads, assembled.registers, shared)
        running = min(blocks, -(-_size(launch.grid) // self._gpu.multiprocessors))
        return {
            "grid": list(launch.grid),
            "threads": launch.threads,
            "shared": shared,
            "registers": assembled.registers,
            "spilled": assembled.spilled,
            "blocks": blocks,
            "limit": limit,
            "in_flight": running * launch.threads * code.flight,
            "in_flight_mean": running * launch.threads * code.flight_mean,
            **code.as_json(),
        }

    def _assemble(self, ptx: str, *, disassembled: bool) -> tuple[Assembled, Code | None]:
        key = (ptx, disassembled)
        if key not in self._read:
            self._read[key] = assemble(ptx, self._folder, disassembled=disassembled)
        return self._read[key]


def _key(launch: Launch, all_: Collection[Launch]) -> str:
    """What a kernel is called among all of a program: the same one may run in several grids."""
    alike = sum(one.kernel == launch.kernel for one in all_)
    return launch.kernel if alike == 1 else f"{launch.kernel} {'x'.join(map(str, launch.grid))}"


def _size(grid: tuple[int, int, int]) -> int:
    return grid[0] * grid[1] * grid[2]
