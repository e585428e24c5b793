"""`moejax verify --mesh`: each mesh against one device, a line as each is done."""

import dataclasses
import json as json_format
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moejax._sharding import MeshConfig
from moejax.cli import console, startup
from moejax.cli.devices import Devices

if TYPE_CHECKING:
    from moejax.families.config import ModelConfig
    from moejax.measuring.meshes import MeshComparison
    from moejax.moe.split import Split


def run(
    checkpoint: str,
    meshes: Sequence[str],
    dispatch: str,
    devices: Devices,
    *,
    every: bool,
    dtype: str,
    expert_backend: str,
    json: bool,
    quiet: bool,
) -> bool:
    """Prints a line per mesh and a verdict, or a JSON array; returns whether all are the same as one device.

    every: whether every mesh of the visible devices is compared, beside those named.
    """
    from moejax.cli.facts import read_facts  # here, so that --help starts quickly

    facts = read_facts(checkpoint, None)
    config = facts.config
    named = [MeshConfig.parse(text) for text in meshes if text != "auto"]
    splits = _splits(config, named, dispatch)
    with console.progress("starting JAX", quiet=quiet) as step:
        startup.prepare_jax(devices, quiet=quiet)
        import jax

        import moejax
        from moejax.measuring.meshes import compare_model, fitting_meshes, on_one_device
        from moejax.planning.auto import asked_split

        if "auto" in meshes:
            limit, stored = facts.max_seq_len, facts.dtype
            splits.append(asked_split(config, "auto", dispatch, dtype=dtype, stored=stored, max_seq_len=limit))
        if every:
            splits += _splits(config, fitting_meshes(config, jax.device_count()), dispatch)
        if not splits:
            raise ValueError("--all finds no mesh to compare on one device; try --simulate-devices 8")
        for split in splits:
            split.mesh.build()  # a mesh that is too large is told before anything is computed
        reference = on_one_device(checkpoint, dtype=dtype, expert_backend=expert_backend, on_step=step)
        compared: list[MeshComparison] = []
        for split in splits:
            step(f"comparing {split.mesh}, {len(compared) + 1} of {len(splits)}")
            model = moejax.load(checkpoint, mesh=split.mesh, dispatch=split.dispatch, **reference.options)
            compared.append(compare_model(reference, model))
            del model  # its memory is the next one's
            step("")
            if not json:
                console.write(f"{_header()}\n" if len(compared) == 1 else "")
                console.write(f"{_line(compared[-1])}\n")
    if json:
        objects = [dataclasses.asdict(one) | {"passed": one.passed} for one in compared]
        console.write(f"{json_format.dumps(objects)}\n")
    else:
        console.write(f"{_verdict(compared)}\n")
    return all(one.passed for one in compared)


def _splits(config: "ModelConfig", meshes: Sequence[MeshConfig], dispatch: str) -> "list[Split]":
    from moejax.moe.split import resolve_split

    return [resolve_split(config, mesh, dispatch) for mesh in meshes]


def _header() -> str:
    return f"{'mesh':<26} {'dispatch':<11} {'largest diff':>12} {'same best':>10}  tokens"


def _line(one: "MeshComparison") -> str:
    tokens = "same" if one.token_gap is None else f"differ (gap {abs(one.token_gap):.1e})"
    verdict = "" if one.passed else "  FAILED"
    return (
        f"{one.mesh:<26} {one.dispatch:<11} {one.logits.max_abs:>12.1e} {one.logits.greedy_agreement:>10.2%}  "
        f"{tokens}{verdict}"
    )


def _verdict(compared: "Sequence[MeshComparison]") -> str:
    from moejax.measuring.logits import ROUNDED_KL

    failed = [one.mesh for one in compared if not one.passed]
    tolerance = compared[0].tolerance
    within = f"mean divergence within {ROUNDED_KL} nats" if tolerance is None else f"logits within {tolerance:.1g}"
    if failed:
        return f"NOT the same as one device ({within}): {', '.join(failed)}"
    same = "the same as one device" if tolerance is not None else "the same as one device up to rounding"
    return f"{len(compared)} mesh{'es' if len(compared) > 1 else ''}: {same} ({within})"
