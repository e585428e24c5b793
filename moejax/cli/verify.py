"""`moejax verify`: whether a checkpoint computes on meshes what it computes on one device."""

import dataclasses
import json as json_format
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from moejax.cli import console, options, startup
from moejax.cli import devices as device_flags
from sharding import MeshConfig

if TYPE_CHECKING:
    from moejax.config import ModelConfig
    from moejax.layout import Split
    from moejax.verification.meshes import MeshComparison

EXAMPLES = (
    "moejax verify demo --mesh expert=4,tensor=2 --mesh data=2,expert=4 --simulate-devices 8",
    "moejax verify path/to/checkpoint --all --dispatch gather",
)

NOT_EQUAL = 1  # exit code

Meshes = Annotated[
    list[str] | None,
    typer.Option("--mesh", metavar="MESH", help="Compare this mesh with one device, repeatable: expert=4,tensor=2."),
]
All = Annotated[bool, typer.Option("--all", help="Compare every mesh over which the visible devices can split it.")]
Dtype = Annotated[
    str, typer.Option("--dtype", metavar="NAME", help="What all compute in: bfloat16, float16 or float32.")
]


def verify(
    checkpoint: options.Checkpoint,
    mesh: Meshes = None,
    all_meshes: All = False,
    dispatch: device_flags.Dispatch = "auto",
    dtype: Dtype = "float32",
    expert_backend: options.ExpertBackend = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array instead, an object per mesh.")] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
    simulate_devices: device_flags.SimulateDevices = None,
) -> int:
    """Compare meshes with one device: logits and greedy tokens. Exit code 0: all the same, 1: not."""
    if not mesh and not all_meshes:
        raise ValueError("there is nothing to compare; give --mesh expert=4,tensor=2, or --all")
    devices = device_flags.Devices(simulate_devices=simulate_devices)
    from moejax.cli.facts import read_facts  # here, so that --help does not import numpy

    config = read_facts(checkpoint, None).config
    splits = _splits(config, [MeshConfig.parse(text) for text in mesh or []], dispatch)
    with console.progress(f"loading {checkpoint}", quiet=quiet):
        startup.prepare_jax(devices, quiet=quiet)
        import jax

        import moejax
        from moejax.verification.meshes import compare_model, fitting_meshes, on_one_device

        if all_meshes:
            splits += _splits(config, fitting_meshes(config, jax.device_count()), dispatch)
        if not splits:
            raise ValueError("--all finds no mesh to compare on one device; try --simulate-devices 8")
        for split in splits:
            split.mesh.build()  # a mesh that is too large is told before anything is computed
        reference = on_one_device(checkpoint, dtype=dtype, expert_backend=expert_backend)
    compared: list[MeshComparison] = []
    for split in splits:
        with console.progress(f"comparing {split.mesh}", quiet=quiet):
            model = moejax.load(checkpoint, mesh=split.mesh, dispatch=split.dispatch, **reference.options)
            compared.append(compare_model(reference, model))
            del model  # its memory is the next one's
        if not json:
            console.write(f"{_header()}\n" if len(compared) == 1 else "")
            console.write(f"{_line(compared[-1])}\n")
    if json:
        objects = [dataclasses.asdict(one) | {"passed": one.passed} for one in compared]
        console.write(f"{json_format.dumps(objects)}\n")
    else:
        console.write(f"{_verdict(compared)}\n")
    return 0 if all(one.passed for one in compared) else NOT_EQUAL


def _splits(config: "ModelConfig", meshes: Sequence[MeshConfig], dispatch: str) -> "list[Split]":
    from moejax.layout import resolve_split

    return [resolve_split(config, mesh, dispatch) for mesh in meshes]


def _header() -> str:
    return f"{'mesh':<26} {'dispatch':<11} {'largest diff':>12} {'same best':>10}  tokens"


def _line(one: "MeshComparison") -> str:
    tokens = "same" if one.token_gap is None else f"differ by {one.token_gap:.1e}"
    verdict = "" if one.passed else "  FAILED"
    return (
        f"{one.mesh:<26} {one.dispatch:<11} {one.logits.max_abs:>12.1e} {one.logits.greedy_agreement:>10.2%}  "
        f"{tokens}{verdict}"
    )


def _verdict(compared: "Sequence[MeshComparison]") -> str:
    failed = [one.mesh for one in compared if not one.passed]
    within = f"logits within {compared[0].tolerance:.1g}"
    if failed:
        return f"NOT the same as one device ({within}): {', '.join(failed)}"
    return f"{len(compared)} mesh{'es' if len(compared) > 1 else ''}: the same as one device ({within})"
