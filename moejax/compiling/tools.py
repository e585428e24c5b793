"""The wheels of the extra `compile`, and the tools in them: ptxas and nvdisasm. Imports no JAX."""

import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from moejax.compiling.machine_code import Assembled, Code, read_assembled, read_code

# What the command needs, at the versions of the extras: other releases compile other programs, and from 0.11 on JAX
# writes no PTX.
WHEELS = {
    "jax": "0.10.2",
    "jax-cuda12-plugin": "0.10.2",
    "nvidia-cuda-nvcc-cu12": "12.9.86",
    "nvidia-cuda-nvdisasm": "13.5.37",
}
TPU_WHEELS = {"jax": "0.10.2", "libtpu": "0.0.42.1"}
Extra = Literal["compile", "compile-tpu"]
EXTRAS: Mapping[Extra, Mapping[str, str]] = {"compile": WHEELS, "compile-tpu": TPU_WHEELS}
INSTALL = "pip install 'moejax[{extra}]' (in a checkout, '.[{extra}]')"
_PLACES = {"ptxas": "cuda_nvcc/bin/ptxas", "nvdisasm": "cu13/bin/nvdisasm"}


def missing(extra: Extra) -> str | None:
    """What is not as an extra has it, in a line with what to do; None where everything is."""
    wrong = []
    for name, wanted in EXTRAS[extra].items():
        try:
            got = version(name)
        except PackageNotFoundError:
            got = "nothing"
        if got != wanted:
            wrong.append(f"{name} {wanted} (got {got})")
    if not wrong:
        return None
    return f"compiling for it needs {', '.join(wrong)}: in an environment of its own, {INSTALL.format(extra=extra)}"


def tool(name: str) -> Path:
    """Where a tool is.

    Raises:
        ValueError: where it is not.
    """
    spec = find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (found := Path(root, _PLACES[name])).exists():
            return found
    raise ValueError(f"found no {name}: {INSTALL.format(extra='compile')}")


def assemble(ptx: str, folder: Path, *, disassembled: bool) -> tuple[Assembled, Code | None]:
    """What ptxas makes of one kernel, and, where asked for, its machine code read.

    Raises:
        RuntimeError: when a tool fails.
    """
    arch = re.search(r"^\.target\s+(\w+)", ptx, re.M)
    assert arch is not None, "XLA's PTX names its target"
    source, binary = folder / "kernel.ptx", folder / "kernel.cubin"
    source.write_text(ptx)
    assembled = read_assembled(_run("ptxas", "-v", f"-arch={arch[1]}", str(source), "-o", str(binary)))
    code = read_code(_run("nvdisasm", "-c", "-ndf", str(binary))) if disassembled else None
    return assembled, code


def _run(name: str, *arguments: str) -> str:
    done = subprocess.run([tool(name), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr.strip()[:300]}")
    return done.stdout or done.stderr  # ptxas says it on stderr
