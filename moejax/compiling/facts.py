"""What is said of a compiled program whatever it was compiled for, as JSON has it."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax

from moejax._sharding.collectives import Collective, compiled_collectives
from moejax.compiling.cases import Case
from moejax.compiling.programs import predicted_collectives
from moejax.compiling.substitutions import Explained, explained
from moejax.model.structure import Structure
from moejax.planning.communication import by_phase
from moejax.planning.footprint import weight_bytes


def memory_facts(case: Case, structure: Structure, compiled: jax.stages.Compiled, device_bytes: int) -> dict[str, int]:
    """Bytes of one device, beside what loading asks for first: that its weights fit (`loading.check_fits`)."""
    memory: Any = compiled.memory_analysis()
    assert memory is not None, "XLA analyses every program"
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "device": device_bytes,
        "weights": weight_bytes(case.config, structure.parallel.rules, case.dtype),
        "arguments": memory.argument_size_in_bytes,
        "outputs_not_aliased": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        # XLA for TPUs of this release does not say it: what is held and what is needed besides.
        "peak": getattr(memory, "peak_memory_in_bytes", 0) or held + memory.temp_size_in_bytes,
    }


def collective_facts(case: Case, structure: Structure, hlo: str, *, substitutes: bool = False) -> dict[str, Any]:
    """Those of the program, and how they differ from the closed forms.

    substitutes: whether the compiler puts some in the place of others (`substitutions`), which are then named as such.
    """
    found = Counter(by_phase(compiled_collectives(hlo, structure.parallel.mesh.shape)))
    wanted = predicted_collectives(case, structure)
    expected = found if wanted is None else Counter(wanted)
    left = Explained(Counter(), found - expected, expected - found)
    if substitutes:
        left = explained(left.unpredicted, left.missing)
    return {
        "compared": wanted is not None,
        "found": _lines(found.items()),
        "substituted": sorted(
            f"{number} x {one.instead.kind} instead of {' and '.join(map(_said, one.of))}"
            for one, number in left.substitutions.items()
        ),
        "unpredicted": _lines(left.unpredicted.items()),
        "missing": _lines(left.missing.items()),
    }


def _lines(counted: Iterable[tuple[Collective, int]]) -> list[str]:
    return sorted(f"{number} x {_said(one)}" for one, number in counted)


def _said(one: Collective) -> str:
    return f"{one.kind} over {','.join(one.axes)} of {one.elements:,} {one.dtype} in {one.scope or 'report'}"
