"""Facts of a case as the worker makes them, of recorded texts instead of compilers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from moejax.compiling import kernels
from moejax.compiling.cases import Case
from moejax.compiling.launches import count, read_thunks, step_of
from moejax.compiling.machine_code import read_assembled, read_code
from moejax.compiling.targets import gpu_target
from scripts.compiled_baseline import checked_cases
from tests.moejax.compiling import recorded

CASE = checked_cases()[0]
PTX = ".visible .entry {name}(\n"


def facts(
    folder: Path,
    *,
    case: Case = CASE,
    thunks: str = "",
    grid: str = "[28, 8, 1]",
    code: str = recorded.COPIES,
    ptxas: str = recorded.PTXAS,
) -> dict[str, Any]:
    """The facts of `case`; thunks: what its step has besides.  grid, code, ptxas: of its kernel."""
    step = step_of(read_thunks(recorded.THUNKS.replace("[28, 8, 1]", grid) + thunks))
    files = []
    for name in {one.launch.kernel for one in step.walk() if one.launch}:
        files.append(folder / f"{name}.ptx")
        files[-1].write_text(PTX.format(name=name))
    with _compilers(code, ptxas):
        read = kernels.KernelReader(gpu_target(case.target), folder).read(step, {31}, files)
    return {
        "case": asdict(case),
        "backend": "pallas",
        "memory": {"device": 10**11, "weights": 10**9, "arguments": 10**9, "temporary": 10**6, "peak": 2 * 10**9},
        "collectives": {"compared": True, "found": [], "substituted": [], "unpredicted": [], "missing": []},
        "launches": asdict(count(step, {13: "attention", 31: "moe"})),
        **read,
        "seconds": {"lower": 0.5, "compile": 1.0, "read": 0.1},
    }


@contextmanager
def _compilers(code: str, ptxas: str) -> Iterator[None]:
    def assemble(ptx: str, folder: Path, *, disassembled: bool) -> Any:
        own = "few_tokens" in ptx
        return read_assembled(ptxas if own else recorded.PTXAS), read_code(code) if disassembled else None

    with mock.patch.object(kernels, "assemble", assemble):
        yield
