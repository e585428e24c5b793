"""What `moejax mesh compare` does, and `scripts/mesh_config.py`: compare, print, draw. Imports no JAX."""

import json
import re
from pathlib import Path

from moejax.cli import console, mesh_checks
from moejax.cli.mesh_flags import CompareFlags
from moejax.planning.advice import what_fits
from moejax.planning.compare import ComparisonInputs, compare_meshes, make_plan
from moejax.planning.export import comparison_json
from moejax.planning.hardware_file import load_hardware
from moejax.planning.objectives import check_objective
from moejax.planning.rows import MeshRow

MAX_BATCH_SIZE = 100_000


def run(flags: CompareFlags) -> bool:
    """Compares, and prints a table or JSON; whether any split fits.

    Raises:
        ValueError: for any flag that cannot be used, before anything is printed.
    """
    if flags.plot is not None:
        from moejax.planning.plots import check_plot

        check_plot(flags.plot)
    hardware = load_hardware(flags.hardware)
    rows = compare_meshes(
        flags.model,
        flags.devices,
        hardware,
        batch_size=batch_sizes(flags.batch_size),
        input_len=flags.input_len,
        context=flags.context,
        dtype=flags.dtype,
        objective=flags.objective,
        dispatch=flags.dispatch,
        expert_load=flags.expert_load,
        usable_fraction=flags.usable_fraction,
    )
    plan = make_plan(flags.model, hardware, flags.expert_load, flags.usable_fraction)
    fits = any(row.fits for row in rows)
    fits_with = [] if fits else what_fits(plan, flags.devices, flags.dispatch, rows)
    if flags.measure:
        mesh_checks.check_measurable(flags.devices, rows, hardware, quiet=flags.quiet)
    if flags.compile:
        rows = mesh_checks.compiled(plan, rows, quiet=flags.quiet)
    if flags.measure:
        rows = mesh_checks.measured(flags.model, plan, rows, quiet=flags.quiet)
    if flags.as_json:
        console.write(f"{json.dumps(comparison_json(rows, hardware, fits_with), ensure_ascii=False)}\n")
    else:
        _show(flags, plan, rows, fits_with)
    if flags.plot is not None and not fits and not flags.quiet:
        console.warn(f"nothing fits, so there is nothing to draw: {flags.plot} is not written")
    elif flags.plot is not None and fits:
        from moejax.planning.plots import draw

        title = f"{flags.model} on {flags.devices:,} x {hardware.title}, {rows[0].workload.dtype}"
        draw(rows, plan, console.printable(title), Path(flags.plot))
        if not flags.quiet:
            console.remark(f"drawn: {flags.plot}")
    return fits


def _show(flags: CompareFlags, plan: ComparisonInputs, rows: list[MeshRow], fits_with: list[str]) -> None:
    from moejax.cli.mesh_tables import compare_tables

    tables = compare_tables(
        rows,
        plan.hardware,
        model=flags.model,
        devices=flags.devices,
        usable_fraction=flags.usable_fraction,
        objective=check_objective(flags.objective),
        fits_with=fits_with,
        width=console.width(),
    )
    console.write_rendered(*tables)
    if flags.compile or flags.measure:
        console.write_rendered(*mesh_checks.check_tables(plan, rows))


def batch_sizes(text: str) -> list[int]:
    """The numbers in "1,8,32".

    Raises:
        ValueError: for anything else.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,6}", word) and 0 < int(word) <= MAX_BATCH_SIZE for word in words):
        raise ValueError(
            f"--batch-size must be whole numbers from 1 to {MAX_BATCH_SIZE:,}, as in 8 or 1,8,32, got {text!r:.80}"
        )
    return list(dict.fromkeys(map(int, words)))
