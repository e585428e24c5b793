"""The committed counts of compiled programs, and what got worse since. Imports no JAX.

{"wheels": {"jax": "0.10.2", ...}, "cases": [{"case": {...}, "launches": {...}, "kernels": {...}, ...}]}

Which programs it has is said here (`checked_cases`); what was counted in them is in the file.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moejax._sharding import MeshConfig
from scripts.compiling.cases import Case, ProgramName, case_of
from scripts.compiling.targets import TARGETS
from scripts.compiling.tools import WHEELS

PATH = Path("docs/compiled_baseline.json")
Better = Literal["less", "more"]

# What is compared of a program, and which way is better.
OF_PROGRAM: Mapping[str, Better] = {
    "launches.kernels": "less",
    "launches.host_launched": "less",
    "launches.command_buffers": "less",
    "launches.copies": "less",
    "launches.host_loops": "less",
    "launches.loop_kernels": "less",
    "launches.overlapped": "more",
    "memory.temporary": "less",
    "memory.peak": "less",
    "xla_kernels.spilled": "less",
}
OF_KERNEL: Mapping[str, Better] = {
    "launches": "less",
    "spilled": "less",
    "local": "less",
    "blocks": "more",
    "tensor": "more",
    "asynchronous": "more",
    "widest": "more",
    "in_flight": "more",
    "in_flight_mean": "more",
    "instructions": "less",
}


LAYERS = 2
# (program, mesh, dtype, batch, width, micro-batches) of each target.
_CHECKED: tuple[tuple[ProgramName, str, str, int, int, int], ...] = (
    ("decode", "data=1", "bfloat16", 1, 1, 1),
    ("decode", "data=1", "bfloat16", 8, 1, 1),
    ("decode", "tensor=8", "bfloat16", 1, 1, 1),
    ("decode", "expert=4,tensor=2", "bfloat16", 8, 1, 1),
    ("prefill", "data=1", "bfloat16", 1, 2048, 1),
    ("prefill", "expert=4,tensor=2", "bfloat16", 1, 2048, 1),
    ("prefill", "expert=4,tensor=2", "bfloat16", 1, 2048, 2),
    ("serve-step", "data=1", "bfloat16", 16, 1, 1),
    ("serve-feed", "data=1", "bfloat16", 16, 128, 1),
    ("layer", "data=1", "bfloat16", 64, 1, 1),
    ("layer", "data=1", "bfloat16", 4096, 1, 1),
    ("layer", "data=1", "float32", 8, 1, 1),
    ("layer", "data=1", "float32", 64, 1, 1),
    ("layer", "data=1", "float32", 4096, 1, 1),
)


def checked_cases() -> list[Case]:
    """The programs of the baseline: two layers of Mixtral 8x7B, for every target."""
    return [
        Case(
            target=name,
            program=program,
            model="mixtral-8x7b",
            layers=LAYERS,
            mesh=str(MeshConfig.parse(mesh)),
            dispatch="replicated",
            backend="auto",
            dtype=dtype,
            batch=batch,
            width=width,
            positions=4096,
            micro_batches=micro_batches,
        )
        for name in TARGETS
        for program, mesh, dtype, batch, width, micro_batches in _CHECKED
    ]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What differs from the baseline, a line each."""

    worse: tuple[str, ...]
    better: tuple[str, ...]


def read_baseline(path: Path) -> dict[Case, dict[str, Any]]:
    """What a baseline says of each case.

    Raises:
        ValueError: where there is none, or one of other wheels.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        wheels, found = raw["wheels"], {case_of(one["case"]): one for one in raw["cases"]}
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no baseline of compiled programs ({error}); --update writes one") from error
    if wheels != WHEELS:
        raise ValueError(f"{path} was counted with {_listed(wheels)}, expected {_listed(WHEELS)}: --update counts anew")
    return found


def write_baseline(path: Path, facts: Iterable[Mapping[str, Any]]) -> None:
    """Writes facts as a baseline, a line for each part of a case; how long compiling took is left out."""
    cases = [{name: part for name, part in one.items() if name != "seconds"} for one in facts]
    listed = ",\n".join(
        "{" + ",\n ".join(f"{json.dumps(name)}: {json.dumps(part)}" for name, part in one.items()) + "}"
        for one in cases
    )
    path.write_text(f'{{"wheels": {json.dumps(WHEELS)},\n"cases": [\n{listed}\n]}}\n', encoding="utf-8")


def compare(wanted: Mapping[str, Any] | None, got: Mapping[str, Any]) -> Compared:
    """What differs in the facts of one case from those of the baseline, which may not have it."""
    title = case_of(got["case"]).title
    if wanted is None:
        return Compared(worse=(f"{title}: not in the baseline: --update",), better=())
    lines: dict[bool, list[str]] = {True: [], False: []}
    for is_worse, line in _differences(wanted, got):
        lines[is_worse].append(f"{title}: {line}")
    return Compared(worse=tuple(lines[True]), better=tuple(lines[False]))


def _differences(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """(whether it is worse, what differs)."""
    for name, better in OF_PROGRAM.items():
        yield from _difference(name, better, _at(wanted, name), _at(got, name))
    for name in ("unpredicted", "missing"):
        before, after = (set(facts["collectives"][name]) for facts in (wanted, got))
        yield from ((True, f"collective {name} by the closed forms: {one}") for one in sorted(after - before))
        yield from ((False, f"collective no longer {name}: {one}") for one in sorted(before - after))
    scopes = {*wanted["launches"]["by_scope"], *got["launches"]["by_scope"]}
    for scope in sorted(scopes):
        before, after = (facts["launches"]["by_scope"].get(scope, 0) for facts in (wanted, got))
        yield from _difference(f"kernels in {scope}", "less", before, after)
    for kernel, after in got["kernels"].items():
        before = wanted["kernels"].get(kernel)
        if before is None:
            yield True, f"kernel {kernel} is not in the baseline: --update"
            continue
        for name, better in OF_KERNEL.items():
            yield from _difference(f"{kernel} {name}", better, _count(before, name), _count(after, name))
    yield from ((False, f"kernel {name} is gone") for name in wanted["kernels"] if name not in got["kernels"])


def _difference(name: str, better: Better, before: int, after: int) -> Iterator[tuple[bool, str]]:
    if before != after:
        yield (after > before) == (better == "less"), f"{name} was {before:,}, is {after:,}"


def _at(facts: Mapping[str, Any], path: str) -> int:
    outer, _, inner = path.partition(".")
    return facts[outer][inner]


def _count(kernel: Mapping[str, Any], name: str) -> int:
    return widest(kernel) if name == "widest" else kernel[name]


def widest(kernel: Mapping[str, Any]) -> int:
    """Bytes of a kernel's widest load; 0 where it has none."""
    return max(map(int, kernel["widths"]), default=0)


def _listed(wheels: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in wheels.items())
