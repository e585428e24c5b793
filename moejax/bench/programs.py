"""What a case of a baseline is now: what is in its compiled programs, and on one device how long it takes."""

import re
import statistics
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any

import jax

import moejax
from moejax._sharding.collectives import compiled_collectives
from moejax.bench.baseline import case_work
from moejax.bench.works import Work

# Instructions that start no work: names for values, and what holds them together.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "partition-id"}
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) .*\{$")
_OPCODE = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([a-z][a-z\d\-]*)\(")
_FUSED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")


def measure_case(case: Mapping[str, Any], *, rounds: int) -> dict[str, Any]:
    """What is counted, and on one device, with rounds, the median seconds of prefill and of all decode steps."""
    model = moejax.load(
        case["source"],
        mesh=case["mesh"],
        dispatch=case["dispatch"],
        dtype=case["dtype"],
        expert_backend=case["expert_backend"],
    )
    work = case_work(case)
    counted = count_programs(model, work)
    if not rounds or model.mesh.size > 1:  # simulated devices are never timed
        return {"counted": counted}
    stats = [_decode(model, work)[0].stats for _ in range(rounds)]
    times = {
        "prefill": statistics.median(one.ttft_seconds for one in stats),
        "decode": statistics.median(one.decode_seconds for one in stats),
    }
    return {"counted": counted, "times": times}


def count_programs(model: moejax.Model, work: Work) -> dict[str, Any]:
    """Runs the work once in a freshly loaded model and counts what was compiled for it.

    compilations: how many programs.  programs: by kind ("generate" is the loop of decode steps), `flops` as XLA counts
    them (a loop's body once), `argument_bytes`, `temp_bytes`, `output_bytes` of each device, `launches` (instructions
    that run as something of their own, loops' bodies once), `collectives` (kind, axes, elements, dtype: how many).
    """
    _decode(model, work)
    programs = model.programs.by_key()
    return {
        "compilations": len(programs),
        "programs": {_kind(key): _count(program, model) for key, program in programs.items()},
    }


def count_launches(text: str) -> int:
    """Instructions of a compiled program that run as something of their own: those inside a fusion do not count."""
    counts: Counter[str] = Counter()
    fused: set[str] = set()
    name = ""
    for line in text.splitlines():
        if header := _COMPUTATION.fullmatch(line):
            name = header[1]
        elif found := _OPCODE.match(line):
            counts[name] += found[1] not in _FREE
            if found[1] not in ("call", "while", "conditional"):  # these run what they call as it stands
                fused.update(_FUSED.findall(line))
    return sum(count for name, count in counts.items() if name not in fused)


def _decode(model: moejax.Model, work: Work) -> list[moejax.DecodeResult]:
    return moejax.decode(model, work.prompts(model.config.vocab_size), max_tokens=work.output_len, ignore_eos=True)


def _kind(key: Hashable) -> str:
    return str(key[0]) if isinstance(key, tuple) else str(key)


def _count(program: jax.stages.Compiled, model: moejax.Model) -> dict[str, Any]:
    memory, text = program.memory_analysis(), program.as_text() or ""
    assert memory is not None, "XLA analyses the memory of programs on CPU, GPU and TPU"
    cost: Any = program.cost_analysis()
    shape = model.mesh.shape
    collectives = Counter(
        f"{one.kind} over {'+'.join(one.axes)}, {one.elements} {one.dtype}" for one in compiled_collectives(text, shape)
    )
    return {
        "flops": int(cost.get("flops", 0)),
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "launches": count_launches(text),
        "collectives": dict(sorted(collectives.items())),
    }
