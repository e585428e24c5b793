"""Every split of a comparison, compiled for the accelerator that it is to run on. Imports no JAX.

Programs have 1 and 2 layers, and what the second adds is added up to the model's depth.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from moejax.compiling.cases import Case, ProgramName
from moejax.compiling.children import compile_all
from moejax.compiling.targets import Tpu, target
from moejax.compiling.tools import missing
from moejax.families.config import ModelConfig
from moejax.families.table import family_of
from moejax.moe.split import Split, make_rules
from moejax.planning.calls import ProgramCall, cache_positions, decode_call, prefill_cache_shape, prefill_calls
from moejax.planning.compiled_counts import CompiledCounts
from moejax.planning.hardware import Hardware
from moejax.planning.workload import Workload

DEPTHS = (1, 2)
LAYER_SCOPES = ("attention", "moe", "mlp")


def check_target(name: str, hardware: Hardware, devices: int = 1) -> None:
    """Raises ValueError for a target that is unknown, not this hardware, too small, or needs what is not here."""
    found = target(name)
    if found.hardware != hardware.name:
        raise ValueError(
            f"--compiled-for {name} compiles for {found.figures.title}, but --hardware {hardware.name} has the "
            f"figures of {hardware.title}; give --hardware {found.hardware}"
        )
    if isinstance(found, Tpu) and found.devices < devices:
        raise ValueError(
            f"--compiled-for {name} has {found.devices} devices, and {devices} are compared; give a larger topology"
        )
    if reason := missing("compile-tpu" if isinstance(found, Tpu) else "compile"):
        raise ValueError(f"--compiled-for {name}: {reason}")


def compile_splits(
    config: ModelConfig,
    wanted: Sequence[tuple[Split, Workload]],
    name: str,
    *,
    micro_batches: int = 1,
    told: Callable[[int, int], None] = lambda done, every: None,
) -> dict[tuple[Split, Workload], CompiledCounts]:
    """What the compiler of the target `name` makes of each split and workload.

    Args:
        told: is told after each program how many are done, of how many.

    Raises:
        ValueError: for a workload without a cache, of which there is no program.
        RuntimeError: when a program cannot be compiled.
    """
    if any(workload.context == 0 for _, workload in wanted):
        raise ValueError("context=0 leaves the cache out, and no program can; compile with a context of at least 1")
    with tempfile.TemporaryDirectory(prefix="compiled_for") as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(family_of(config).hf_config(config, "bfloat16")), encoding="utf-8")
        cases = {
            one: list(_cases(config, *one, Case(**_COMMON, target=name, model=str(path), micro_batches=micro_batches)))
            for one in wanted
        }
        every = [case for of_one in cases.values() for case in of_one]
        facts: dict[str, Any] = {}
        for done, found in enumerate(compile_all(list(dict.fromkeys(every))), start=1):
            facts[json.dumps(found["case"], sort_keys=True)] = found
            told(done, len(set(every)))
    return {
        one: _counts(name, config.num_layers, [facts[_key(case)] for case in of_one]) for one, of_one in cases.items()
    }


_COMMON: dict[str, Any] = {
    "program": "decode", "layers": 1, "mesh": "data=1", "dispatch": "replicated", "backend": "auto",
    "dtype": "bfloat16", "batch": 1, "width": 1, "positions": 1,
}  # fmt: skip


def _cases(config: ModelConfig, split: Split, workload: Workload, base: Case) -> Iterator[Case]:
    """A step and the first call of the prefill, each of both depths."""
    rules = make_rules(config, split.mesh, split.dispatch)
    calls: tuple[tuple[ProgramName, ProgramCall, int], ...] = (
        ("decode", decode_call(workload, rules), cache_positions(workload)),
        ("prefill", next(prefill_calls(workload, rules)), prefill_cache_shape(workload, rules)[1]),
    )
    for program, call, positions in calls:
        for layers in DEPTHS:
            yield dataclasses.replace(
                base,
                program=program,
                layers=layers,
                mesh=str(split.mesh),
                dispatch=split.dispatch,
                dtype=workload.dtype,
                batch=call.sequences,
                width=call.width,
                positions=positions,
            )


def _counts(name: str, layers: int, facts: Sequence[dict[str, Any]]) -> CompiledCounts:
    """Of a step and a prefill call, each with 1 and with 2 layers."""
    step, prefill = facts[:2], facts[2:]
    temporary = max(_deep([one["memory"]["temporary"] for one in both], layers) for both in (step, prefill))
    launched = "launches" in step[0]
    return CompiledCounts(
        target=name,
        temporary=temporary,
        kernels=_of_a_layer(step) if launched else None,
        prefill_kernels=_of_a_layer(prefill) if launched else None,
        command_buffers=_deep([one["launches"]["command_buffers"] for one in step], layers) if launched else None,
        differences=tuple(
            dict.fromkeys(
                f"{one['case']['program']}: {kind}: {line}"
                for one in (step[-1], prefill[-1])
                for kind in ("unpredicted", "missing")
                for line in one["collectives"][kind]
            )
        ),
    )


def _deep(of_depths: Sequence[int], layers: int) -> int:
    """A number of a program of `layers` layers, from those of 1 and of 2."""
    first, second = of_depths
    return max(second, first + (layers - 1) * (second - first)) if layers > 1 else first


def _of_a_layer(of_depths: Sequence[dict[str, Any]]) -> float:
    """Kernels that the second layer adds."""
    first, second = (sum(one["launches"]["by_scope"].get(scope, 0) for scope in LAYER_SCOPES) for one in of_depths)
    return float(second - first)


def _key(case: Case) -> str:
    return json.dumps(dataclasses.asdict(case), sort_keys=True)
