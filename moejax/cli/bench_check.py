"""`moejax bench check`: counted quantities exactly, times as ratios, against a baseline file."""

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moejax.cli import bench_options as flags
from moejax.cli import console, options, startup
from moejax.cli.devices import Devices
from moejax.cli.groups import grouped

if TYPE_CHECKING:
    from moejax import Model

EXAMPLES = (
    "moejax bench check docs/bench_baseline.json --counted-only --simulate-devices 8",
    "moejax bench check mine.json",
    "moejax bench check mine.json --update",
)

DIFFERS = 1  # exit code
ROUNDS = 5

BaselinePath = Annotated[Path, typer.Argument(metavar="BASELINE", help="A baseline file.", show_default=False)]
CountedOnly = Annotated[
    bool,
    typer.Option("--counted-only", help="Compare no times: what CI does, on whatever machine."),
]
Update = Annotated[
    bool,
    typer.Option("--update", help="Compare nothing: count and time the cases of BASELINE now, and write that into it."),
]


@grouped
def check(
    baseline: BaselinePath,
    devices: Devices,
    counted_only: CountedOnly = False,
    update: Update = False,
    num_iters: flags.Rounds = ROUNDS,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Compare with a baseline. Exit code 0: the same and not slower, 1: not.

    Counts (FLOPs, bytes, collectives, launches, compilations) have to be equal; times may be longer by the tolerance
    that the file states, on the machine that it names.
    """
    from moejax.bench.baseline import (
        case_name,
        check_devices,
        check_environment,
        differences,
        read_baseline,
        slower,
        write_baseline,
    )
    from moejax.bench.machine import describe_machine

    if num_iters < 1:
        raise ValueError(f"--num-iters must be at least 1, got {num_iters}")
    wanted = read_baseline(baseline)
    here = describe_machine()
    machine = f"{here['processor']}, {here['cores']} cores"
    if not counted_only and not update and machine != wanted.machine:
        raise ValueError(
            f"the times in {baseline} are of {wanted.machine or 'no machine'}, this is {machine}: use --counted-only, "
            "or make a baseline of this machine with --update"
        )
    startup.prepare_jax(devices, quiet=quiet)
    import jax

    environment = _environment()
    if not update:
        check_environment(wanted, environment)
    check_devices(wanted, jax.device_count())
    found, told, failed = [], [], []
    with console.progress("checking", quiet=quiet) as step:
        for case in wanted.cases:
            step(f"case {len(found) + 1} of {len(wanted.cases)}: {case_name(case)}")
            now = _measure(case, rounds=0 if counted_only else num_iters)
            found.append({**case, **now})
            failed += differences(case_name(case), case.get("counted"), now["counted"])
            if not counted_only and not update:
                lines, slow = slower(case_name(case), case.get("times", {}), now.get("times", {}), wanted.tolerance)
                told, failed = told + lines, failed + slow
    if update:
        new = dataclasses.replace(
            wanted, environment=environment, machine=None if counted_only else machine, cases=tuple(found)
        )
        write_baseline(new)
        console.write(f"{baseline} written: {len(found)} cases\n")
        return 0
    for line in told:
        console.write(f"{line} (at most {1 + wanted.tolerance:.2f} x)\n")
    for line in failed:
        console.write(f"FAILED {line}\n")
    console.write(f"{len(found)} cases: {f'{len(failed)} differences' if failed else 'as in the baseline'}\n")
    return DIFFERS if failed else 0


def _environment() -> dict[str, str]:
    import jax

    return {"jax": jax.__version__, "platform": jax.default_backend()}


def _measure(case: Mapping[str, Any], *, rounds: int) -> dict[str, Any]:
    """What is counted, and on one device, with rounds, the median seconds of prefill and of all decode steps."""
    import moejax
    from moejax.bench.baseline import case_work
    from moejax.bench.programs import count_programs

    model = moejax.load(
        case["source"],
        mesh=case["mesh"],
        dispatch=case["dispatch"],
        dtype=case["dtype"],
        expert_backend=case["expert_backend"],
    )
    counted = count_programs(model, case_work(case))
    if not rounds or model.mesh.size > 1:  # simulated devices are never timed
        return {"counted": counted}
    return {"counted": counted, "times": _times(model, case, rounds)}


def _times(model: "Model", case: Mapping[str, Any], rounds: int) -> dict[str, float]:
    import moejax
    from moejax.bench.baseline import case_work

    work = case_work(case)
    prompts = work.prompts(model.config.vocab_size)
    stats = [moejax.decode(model, prompts, max_tokens=work.output_len, ignore_eos=True)[0].stats for _ in range(rounds)]
    return {
        "prefill": statistics.median(one.ttft_seconds for one in stats),
        "decode": statistics.median(one.decode_seconds for one in stats),
    }
