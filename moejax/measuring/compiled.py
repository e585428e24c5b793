"""Predictions against what XLA compiles: each split's decode step and prefill, on simulated devices. Imports no JAX.

A subprocess (`compile_program`) compiles them for 1 and for 2 layers, with the sizes that were asked about, and what a
layer adds is added up to the full depth (`tests/moejax/measuring/test_compiled.py` compares that with a deep program).
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from moejax._sharding import Rules
from moejax._sharding.collectives import Collective
from moejax.families.config import ModelConfig
from moejax.moe.split import DispatchName, Split, make_rules
from moejax.planning.calls import ProgramCall, decode_call, prefill_cache_shape, prefill_calls
from moejax.planning.checks import ComparedCall, CompiledCheck
from moejax.planning.communication import (
    Tokens,
    by_phase,
    choice_collectives,
    forward_collectives,
    report_collectives,
    step_collectives,
)
from moejax.planning.footprint import cache_bytes, weight_bytes
from moejax.planning.rows import MeshRow
from moejax.planning.workload import Workload

PhaseName = Literal["decode", "prefill"]
PHASES: tuple[PhaseName, ...] = ("decode", "prefill")
DEPTHS = (1, 2)
DTYPE = "float32"  # XLA:CPU widens 16-bit collectives to it, so bytes are compared on such a build


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One program: a phase of a model of `layers` layers, for `sequences` on a mesh.

    width: tokens of each that are fed.  positions: of the cache, for each.
    """

    mesh: str
    dispatch: DispatchName
    phase: PhaseName
    layers: int
    sequences: int
    width: int
    positions: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramFacts:
    """What XLA made of one program: its collectives, and bytes on one device.

    argument_bytes: as XLA counts them.  weight_bytes, kv_bytes, other_bytes: of the arguments' parts, as sharded;
    what fills up the arrays of weights (`weights/strips.py`) is among the others.
    temp_bytes: what it needs besides arguments and results.
    """

    collectives: tuple[Collective, ...]
    weight_bytes: int
    kv_bytes: int
    other_bytes: int
    argument_bytes: int
    temp_bytes: int


def compile_splits(
    config: ModelConfig,
    splits: Sequence[Split],
    workload: Workload,
    *,
    depths: Sequence[int] = DEPTHS,
    told: Callable[[int, int], None] = lambda done, all_: None,
) -> list[CompiledCheck]:
    """Compiles every split for this workload and compares it with the closed forms; in the order of `splits`.

    Args:
        depths: two numbers of layers, from which others follow.
        told: is told after each program how many are done, of how many.

    Raises:
        ValueError: for a workload without a cache, of which there is no program.
        RuntimeError: when a program cannot be compiled, or layers do not add up.
    """
    if workload.context == 0:
        raise ValueError("context=0 leaves the cache out, and no program can; compile with a context of at least 1")
    jobs = [_jobs(config, split, workload, depths) for split in splits]
    flat = [job for of_split in jobs for job in of_split]
    devices = max((split.mesh.size for split in splits), default=1)
    facts: dict[Job, ProgramFacts] = {}
    for done, (number, found) in enumerate(_run(config, flat, devices), start=1):
        facts[flat[number]] = found
        told(done, len(flat))
    return [_check(config, split, of_split, facts) for split, of_split in zip(splits, jobs, strict=True)]


def compile_rows(
    config: ModelConfig, rows: Sequence[MeshRow], told: Callable[[int, int], None] = lambda done, all_: None
) -> list[MeshRow]:
    """The rows with what XLA compiled in those of the largest batch whose split exists; the others as they are.

    The closed forms are linear in the batch, so one batch tells as much as all of them.

    Raises:
        ValueError, RuntimeError: as `compile_splits`.
    """
    largest = max(rows, key=lambda row: row.workload.batch_size).workload
    chosen = [row for row in rows if row.workload == largest and row.built and row.footprint is not None]
    checks = compile_splits(config, [row.split for row in chosen], largest, told=told)
    found = dict(zip((row.split for row in chosen), checks, strict=True))
    return [
        dataclasses.replace(row, compiled=found[row.split]) if row.workload == largest and row in chosen else row
        for row in rows
    ]


def extrapolate(few: Sequence[Collective], more: Sequence[Collective], extra: int) -> Counter[Collective]:
    """Collectives of a program with as many layers again, `extra` times, as `more` has beyond `few`.

    A layer adds collectives of its own; where it makes one larger instead, the sizes grow by equal steps.

    Raises:
        RuntimeError: where neither is so.
    """
    grown: Counter[Collective] = Counter()
    kinds = {dataclasses.replace(one, elements=0) for one in (*few, *more)}
    for kind in kinds:
        before, after = (
            sorted(one.elements for one in found if dataclasses.replace(one, elements=0) == kind)
            for found in (few, more)
        )
        if not Counter(before) - Counter(after):
            added = Counter(after) - Counter(before)
            sizes = Counter(after) + Counter({size: extra * count for size, count in added.items()})
        elif len(before) == len(after):
            sizes = Counter(last + extra * (last - first) for first, last in zip(before, after, strict=True))
        else:
            raise RuntimeError(f"layers do not add up: {kind.kind} over {kind.axes} of {before}, then of {after}")
        grown += Counter({dataclasses.replace(kind, elements=size): count for size, count in sizes.items()})
    return grown


def predicted_collectives(config: ModelConfig, rules: Rules, job: Job) -> list[Collective]:
    """The closed forms of one call, at the depth of `config`."""
    if job.phase == "decode":
        return step_collectives(config, rules, job.dispatch, job.sequences, DTYPE) + report_collectives(config, rules)
    fed = Tokens(sequences=job.sequences, length=job.width)
    found = forward_collectives(config, rules, job.dispatch, fed, DTYPE) + report_collectives(config, rules)
    return found + choice_collectives(rules, Tokens(sequences=job.sequences, length=1))


def _jobs(config: ModelConfig, split: Split, workload: Workload, depths: Sequence[int]) -> list[Job]:
    rules = make_rules(config, split.mesh, split.dispatch)
    step, first = decode_call(workload, rules), next(prefill_calls(workload, rules))
    calls: dict[PhaseName, ProgramCall] = {"decode": step, "prefill": first}
    positions: dict[PhaseName, int] = {"decode": step.positions, "prefill": prefill_cache_shape(workload, rules)[1]}
    return [
        Job(
            mesh=str(split.mesh),
            dispatch=split.dispatch,
            phase=phase,
            layers=layers,
            sequences=call.sequences,
            width=call.width,
            positions=positions[phase],
        )
        for phase, call in calls.items()
        for layers in depths
    ]


def _run(config: ModelConfig, jobs: Sequence[Job], devices: int) -> Iterator[tuple[int, ProgramFacts]]:
    """The number of each job and its facts, as the subprocess is done with them."""
    request = {"config": dataclasses.asdict(config), "jobs": [dataclasses.asdict(job) for job in jobs]}
    command = [sys.executable, "-m", "moejax.measuring.compile_program"]
    # Its stderr goes to a file: nobody reads a second pipe while the first one is read.
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=_environment(devices), text=True
        )
        assert child.stdin is not None and child.stdout is not None
        try:
            with child.stdin:
                json.dump(request, child.stdin)
            for line in child.stdout:
                number, found = json.loads(line)
                collectives = tuple(
                    Collective(**one | {"axes": tuple(one["axes"])}) for one in found.pop("collectives")
                )
                yield number, ProgramFacts(collectives=collectives, **found)
            status = child.wait()
        finally:
            child.kill()  # nothing, once it has ended
            child.wait()
            child.stdout.close()
        if status:
            errors.seek(0)
            written = errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"compiling on {devices} simulated devices failed: {written[-1]}")


def _environment(devices: int) -> dict[str, str]:
    """This process's, but for what says which devices JAX takes."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\S*", "", os.environ.get("XLA_FLAGS", ""))
    paths = [path or os.getcwd() for path in sys.path]
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # programs that are never run would push useful ones out
        "XLA_FLAGS": flags,
        "PYTHONPATH": os.pathsep.join(paths),
    }


def _check(config: ModelConfig, split: Split, jobs: Sequence[Job], facts: dict[Job, ProgramFacts]) -> CompiledCheck:
    """The facts at the depth of the model, and whatever is not as predicted."""
    rules = make_rules(config, split.mesh, split.dispatch)
    differences: list[str] = []
    calls: dict[PhaseName, ComparedCall] = {}
    held: dict[PhaseName, dict[str, tuple[int, int]]] = {}
    temp_bytes = 0
    for phase in PHASES:
        few, more = (job for job in jobs if job.phase == phase)
        before, after = facts[few], facts[more]
        steps, rest = divmod(config.num_layers - more.layers, more.layers - few.layers)
        assert rest == 0, "the two depths differ by a divisor of what is missing"
        found = extrapolate(by_phase(before.collectives), by_phase(after.collectives), steps)
        predicted = predicted_collectives(config, rules, more)
        calls[phase] = ComparedCall(collectives=list(found.elements()), predicted=predicted)
        held[phase] = {
            name: (size, getattr(after, name) + steps * (getattr(after, name) - getattr(before, name)))
            for name, size in _predicted_bytes(config, rules, more).items()
        }
        differences += _collective_differences(phase, predicted, found)
        differences += _byte_differences(phase, held[phase])
        for job in (few, more):
            differences += _argument_differences(job, facts[job])
        temp_bytes = max(temp_bytes, after.temp_bytes + steps * (after.temp_bytes - before.temp_bytes))
    predicted_weights, weights = held["decode"]["weight_bytes"]
    predicted_kv, kv = held["decode"]["kv_bytes"]
    return CompiledCheck(
        decode=calls["decode"],
        prefill=calls["prefill"],
        weight_bytes=weights,
        kv_bytes=kv,
        predicted_weight_bytes=predicted_weights,
        predicted_kv_bytes=predicted_kv,
        temp_bytes=temp_bytes,
        differences=tuple(differences),
    )


def _predicted_bytes(config: ModelConfig, rules: Rules, job: Job) -> dict[str, int]:
    return {
        "weight_bytes": weight_bytes(config, rules, DTYPE),
        "kv_bytes": cache_bytes(config, rules, job.sequences, job.positions, DTYPE),
    }


def _collective_differences(phase: PhaseName, predicted: Sequence[Collective], found: Counter[Collective]) -> list[str]:
    expected = Counter(predicted)
    return [
        f"{phase}: {expected[one]} x {one.kind} over {','.join(one.axes)} of {one.elements:,} {one.dtype} predicted"
        f"{f' in {one.scope}' if one.scope else ''}, {found[one]} compiled"
        for one in dict.fromkeys((*expected, *found))
        if expected[one] != found[one]
    ]


def _argument_differences(job: Job, facts: ProgramFacts) -> list[str]:
    parts = facts.weight_bytes + facts.kv_bytes + facts.other_bytes
    if parts == facts.argument_bytes:
        return []
    return [f"{job.phase}, {job.layers} layers: {parts:,} argument bytes predicted, {facts.argument_bytes:,} compiled"]


def _byte_differences(phase: PhaseName, held: dict[str, tuple[int, int]]) -> list[str]:
    words = {"weight_bytes": "weights", "kv_bytes": "key/value cache"}
    return [
        f"{phase}: {predicted:,} bytes of {words[name]} predicted, {found:,} compiled"
        for name, (predicted, found) in held.items()
        if predicted != found
    ]
