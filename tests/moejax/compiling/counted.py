"""Facts of a program for a GPU, without a compiler."""

from dataclasses import asdict
from typing import Any

from moejax.compiling.cases import Case


def counted(case: Case) -> dict[str, Any]:
    """A layer of a step is 13 kernels and a command buffer, of a prefill 20 and 1,000 bytes."""
    each = 13 if case.program == "decode" else 20
    found = {"compared": True, "found": [], "substituted": [], "unpredicted": [], "missing": []}
    if case.program == "decode" and case.dispatch == "gather":
        found["missing"] = ["1 x all-gather over expert of 8 int32 in moe"]
    return {
        "case": asdict(case),
        "memory": {"temporary": 5_000 + (1_000 * case.layers if case.program == "prefill" else 0)},
        "launches": {
            "by_scope": {"attention": 6 * case.layers, "moe": (each - 6) * case.layers, "other": 9},
            "command_buffers": 1 + case.layers,
        },
        "collectives": found,
    }
