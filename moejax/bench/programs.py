"""What is in a model's compiled programs: quantities that do not depend on how fast the machine is."""

import re
from collections import Counter
from collections.abc import Hashable
from typing import Any

import jax

import moejax
from moejax.bench.works import Work
from sharding.collectives import compiled_collectives

# Instructions that start no work: names for values, and what holds them together.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "partition-id"}
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) .*\{$")
_OPCODE = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([a-z][a-z\d\-]*)\(")
_FUSED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")


def count_programs(model: moejax.Model, work: Work) -> dict[str, Any]:
    """Runs the work once in a freshly loaded model and counts what was compiled for it.

    compilations: how many programs.  programs: by kind ("generate" is the loop of decode steps), `flops` as XLA counts
    them (a loop's body once), `argument_bytes`, `temp_bytes`, `output_bytes` of each device, `launches` (instructions
    that run as something of their own, loops' bodies once), `collectives` (kind, axes, elements, dtype: how many).
    """
    moejax.decode(model, work.prompts(model.config.vocab_size), max_tokens=work.output_len, ignore_eos=True)
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
