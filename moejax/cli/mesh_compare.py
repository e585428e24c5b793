"""What `moejax mesh compare` does, and `scripts/mesh_config.py`: compare, print, draw. Imports no JAX."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from moejax.cli import console, mesh_checks
from moejax.planning.advice import what_fits
from moejax.planning.compare import compare_meshes, make_plan
from moejax.planning.export import comparison_json
from moejax.planning.hardware import load_hardware
from moejax.planning.ranking import check_objective

FORMATS = ("table", "json")
MAX_BATCH_SIZE = 100_000


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The flags of the command, as they were given."""

    model: str
    devices: int
    hardware: str
    batch_sizes: str
    input_len: int | None
    context: int | None
    dtype: str
    expert_load: str | None
    objective: str
    dispatch: str
    usable_fraction: float
    format: str
    plot: str | None
    compile: bool
    measure: bool
    quiet: bool


def run(asked: Asked) -> bool:
    """Compares, and prints a table or JSON; whether any split fits.

    Raises:
        ValueError: for any flag that cannot be used, before anything is printed.
    """
    if asked.format not in FORMATS:
        raise ValueError(f"--format must be {' or '.join(FORMATS)}, got {asked.format!r}")
    if asked.plot is not None:
        from moejax.planning.plots import check_plot

        check_plot(asked.plot)
    hardware = load_hardware(asked.hardware)
    rows = compare_meshes(
        asked.model,
        asked.devices,
        hardware,
        batch_size=batch_sizes(asked.batch_sizes),
        input_len=asked.input_len,
        context=asked.context,
        dtype=asked.dtype,
        objective=asked.objective,
        dispatch=asked.dispatch,
        expert_load=asked.expert_load,
        usable_fraction=asked.usable_fraction,
    )
    plan = make_plan(asked.model, hardware, asked.expert_load, asked.usable_fraction)
    fits = any(row.fits for row in rows)
    fits_with = [] if fits else what_fits(plan, asked.devices, asked.dispatch, rows)
    if asked.measure:
        mesh_checks.check_measurable(asked.devices, rows, hardware, quiet=asked.quiet)
    if asked.compile:
        rows = mesh_checks.compiled(plan, rows, quiet=asked.quiet)
    if asked.measure:
        rows = mesh_checks.measured(asked.model, plan, rows, quiet=asked.quiet)
    if asked.format == "json":
        console.write(f"{json.dumps(comparison_json(rows, hardware, fits_with), ensure_ascii=False)}\n")
    else:
        from moejax.cli.mesh_tables import compare_tables

        tables = compare_tables(
            rows,
            hardware,
            model=asked.model,
            devices=asked.devices,
            usable_fraction=asked.usable_fraction,
            objective=check_objective(asked.objective),
            fits_with=fits_with,
            width=console.width(),
        )
        console.write_rendered(*tables)
        if asked.compile or asked.measure:
            console.write_rendered(*mesh_checks.check_tables(plan, rows))
    if asked.plot is not None and fits:
        from moejax.planning.plots import draw

        title = f"{asked.model} on {asked.devices:,} x {hardware.title}, {rows[0].workload.dtype}"
        draw(rows, plan, console.printable(title), Path(asked.plot))
        if not asked.quiet:
            console.remark(f"drawn: {asked.plot}")
    elif asked.plot is not None and not asked.quiet:
        console.warn(f"nothing fits, so there is nothing to draw: {asked.plot} is not written")
    return fits


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
