"""`moejax bench check`: counted quantities exactly, times as ratios, against a baseline file."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from moejax.cli import bench_options as flags
from moejax.cli import console, options, startup
from moejax.cli.devices import Devices
from moejax.cli.groups import grouped

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
    from moejax.bench import baseline as guard
    from moejax.bench.machine import describe_machine

    if num_iters < 1:
        raise ValueError(f"--num-iters must be at least 1, got {num_iters}")
    wanted = guard.read_baseline(baseline)
    here = describe_machine()
    machine = f"{here['processor']}, {here['cores']} cores"
    if not counted_only and not update and machine != wanted.machine:
        raise ValueError(
            f"the times in {baseline} are of {wanted.machine or 'no machine'}, this is {machine}: use --counted-only, "
            "or make a baseline of this machine with --update"
        )
    startup.prepare_jax(devices, quiet=quiet)
    import jax

    from moejax.bench.programs import measure_case

    environment = {"jax": jax.__version__, "platform": jax.default_backend()}
    if not update:
        guard.check_environment(wanted, environment)
    guard.check_devices(wanted, jax.device_count())
    found, told, failed = [], [], []
    with console.progress("checking", quiet=quiet) as step:
        for case in wanted.cases:
            step(f"case {len(found) + 1} of {len(wanted.cases)}: {guard.case_name(case)}")
            now = measure_case(case, rounds=0 if counted_only else num_iters)
            found.append({**case, **now})
            failed += guard.differences(guard.case_name(case), case.get("counted"), now["counted"])
            if not counted_only and not update:
                lines, slow = guard.slower(
                    guard.case_name(case), case.get("times", {}), now.get("times", {}), wanted.tolerance
                )
                told, failed = told + lines, failed + slow
    if update:
        timed_on = None if counted_only else machine
        guard.write_baseline(dataclasses.replace(wanted, environment=environment, machine=timed_on, cases=tuple(found)))
        console.write(f"{baseline} written: {len(found)} cases\n")
        return 0
    console.write("".join(f"{line} (at most {1 + wanted.tolerance:.2f} x)\n" for line in told))
    console.write("".join(f"FAILED {line}\n" for line in failed))
    console.write(f"{len(found)} cases: {f'{len(failed)} differences' if failed else 'as in the baseline'}\n")
    return DIFFERS if failed else 0
