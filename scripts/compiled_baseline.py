"""The committed counts of compiled programs, a file for each extra, and what got worse since. Imports no JAX.

{"wheels": {"jax": "0.10.2", ...}, "cases": [{"case": {...}, "launches": {...}, "kernels": {...}, ...}]}

Which programs it has is said here (`checked_cases`); what was counted in them is in the file.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moejax._sharding import MeshConfig
from moejax.compiling.cases import Case, ProgramName, case_of
from moejax.compiling.targets import TARGETS
from moejax.compiling.tools import EXTRAS, Extra

PATHS: Mapping[Extra, Path] = {
    "compile": Path("docs/compiled_baseline.json"),
    "compile-tpu": Path("docs/compiled_baseline_tpu.json"),
}
Better = Literal["less", "more"]

# What is compared of a program, where it was counted, and which way is better.
OF_PROGRAM: Mapping[str, Better] = {
    "operations.computing": "less",
    "operations.loops": "less",
    "operations.in_loops": "less",
    "operations.kernels": "more",
    "operations.overlapped": "more",
    "bytes_accessed": "less",
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
GPUS = tuple(name for name in TARGETS if name != "h100")  # whose kernels are an H200's
TPU_TOPOLOGIES = ("v5e:2x4", "v5p:2x2x2", "v6e:2x4", "tpu7x:2x2x1")
# (program, mesh, dtype, batch, width, micro-batches) of each GPU.
_OF_GPU: tuple[tuple[ProgramName, str, str, int, int, int], ...] = (
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
    ("layer", "data=1", "float32", 64, 1, 1),
    ("layer", "data=1", "float32", 4096, 1, 1),
)


# The same of TPUs.
_OF_TPU: tuple[tuple[ProgramName, str, str, int, int, int], ...] = (
    ("decode", "data=1", "bfloat16", 1, 1, 1),
    ("decode", "expert=4,tensor=2", "bfloat16", 8, 1, 1),
    ("prefill", "expert=4,tensor=2", "bfloat16", 1, 512, 1),  # 2,048 tokens take four times as long to compile
    ("layer", "data=1", "bfloat16", 64, 1, 1),
    ("layer", "data=1", "bfloat16", 4096, 1, 1),
)


def checked_cases(extra: Extra = "compile") -> list[Case]:
    """The programs of a baseline: two layers of Mixtral 8x7B, for every target."""
    targets, checked = (GPUS, _OF_GPU) if extra == "compile" else (TPU_TOPOLOGIES, _OF_TPU)
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
        for name in targets
        for program, mesh, dtype, batch, width, micro_batches in checked
    ]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What differs from the baseline, a line each."""

    worse: tuple[str, ...]
    better: tuple[str, ...]


def read_baseline(path: Path, extra: Extra = "compile") -> dict[Case, dict[str, Any]]:
    """What the baseline of an extra says of each case.

    Raises:
        ValueError: where there is none, or one of other wheels.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        wheels, found = raw["wheels"], {case_of(one["case"]): one for one in raw["cases"]}
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no baseline of compiled programs ({error}); --update writes one") from error
    if wheels != EXTRAS[extra]:
        raise ValueError(
            f"{path} was counted with {_listed(wheels)}, expected {_listed(EXTRAS[extra])}: --update counts anew"
        )
    return found


def write_baseline(path: Path, facts: Iterable[Mapping[str, Any]], extra: Extra = "compile") -> None:
    """Writes facts as a baseline, a line for each part of a case; how long compiling took is left out."""
    cases = [{name: part for name, part in one.items() if name != "seconds"} for one in facts]
    listed = ",\n".join(
        "{" + ",\n ".join(f"{json.dumps(name)}: {json.dumps(part)}" for name, part in one.items()) + "}"
        for one in cases
    )
    path.write_text(f'{{"wheels": {json.dumps(EXTRAS[extra])},\n"cases": [\n{listed}\n]}}\n', encoding="utf-8")


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
        if (after := _at(got, name)) is not None:
            yield from _difference(name, better, _at(wanted, name) or 0, after)
    for name in ("substituted", "unpredicted", "missing"):
        before, after = (set(facts["collectives"][name]) for facts in (wanted, got))
        yield from ((True, f"collective {name}, by the closed forms: {one}") for one in sorted(after - before))
        yield from ((False, f"collective no longer {name}: {one}") for one in sorted(before - after))
    if "launches" in got:
        yield from _of_kernels(wanted, got)


def _of_kernels(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
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


def _at(facts: Mapping[str, Any], path: str) -> int | None:
    """A number of the facts; None where they are of a device for which it is not counted."""
    outer, _, inner = path.partition(".")
    found = facts.get(outer)
    return found[inner] if inner and found is not None else found


def _count(kernel: Mapping[str, Any], name: str) -> int:
    return widest(kernel) if name == "widest" else kernel[name]


def widest(kernel: Mapping[str, Any]) -> int:
    """Bytes of a kernel's widest load; 0 where it has none."""
    return max(map(int, kernel["widths"]), default=0)


def _listed(wheels: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in wheels.items())
