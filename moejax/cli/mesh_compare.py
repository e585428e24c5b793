"""What `moejax mesh compare` does, and `scripts/mesh_config.py`: compare, print, draw. Imports no JAX."""

import json
from functools import partial
from pathlib import Path

from moejax.cli import console, mesh_checks
from moejax.cli.mesh_flags import CompareFlags
from moejax.cli.mesh_values import batch_sizes
from moejax.planning.advice import what_fits
from moejax.planning.compare import ComparisonInputs, compare_meshes, make_plan
from moejax.planning.export import comparison_json
from moejax.planning.export_csv import comparison_csv
from moejax.planning.hardware_file import load_hardware
from moejax.planning.objectives import check_objective
from moejax.planning.question import Question
from moejax.planning.rows import MeshRow
from moejax.planning.serve_command import served_checkpoint
from moejax.planning.software import check_times


def run(model: str, flags: CompareFlags) -> bool:
    """Compares splits of `model`, and prints a table, JSON or CSV; whether any split fits and meets the targets.

    Raises:
        ValueError: for any flag that cannot be used, before anything is printed.
    """
    for flag, path in (("--plot", flags.plot), ("--pareto", flags.pareto)):
        if path is not None:
            from moejax.planning.plots import check_plot

            check_plot(path, flag)
    hardware = load_hardware(flags.hardware)
    mesh_checks.check_target(flags.compiled_for, hardware, flags.counts[0])
    compare = partial(
        compare_meshes,
        model,
        flags.counts,
        hardware,
        batch_size=batch_sizes(flags.batch_size),
        input_len=flags.input_len,
        context=flags.context,
        dtype=flags.dtype,
        objective=flags.objective,
        dispatch=flags.dispatch,
        expert_load=flags.expert_load,
        usable_fraction=flags.usable_fraction,
        software=flags.software,
        skew=flags.skew,
        times=flags.times,
        efficiency=flags.efficiency,
        ttft=flags.ttft,
        tpot=flags.tpot,
        micro_batches=flags.micro_batches,
    )
    rows = compare()
    plan = make_plan(
        *(model, hardware, flags.expert_load, flags.usable_fraction, flags.software, flags.skew, flags.efficiency)
    )
    if flags.compiled_for is not None:
        rows = compare(compiled=mesh_checks.compiled_for(flags, plan, rows))
    question = _question(model, flags, plan)
    fits = any(row.fits for row in rows)
    fits_with = [] if fits else what_fits(plan, max(flags.counts), flags.dispatch, rows)
    if flags.measure:
        mesh_checks.check_measurable(flags.counts[0], rows, hardware, quiet=flags.quiet)
    if flags.compile:
        rows = mesh_checks.compiled(plan, rows, quiet=flags.quiet)
    if flags.measure:
        rows = mesh_checks.measured(model, plan, rows, quiet=flags.quiet)
    if flags.printed_as == "csv":
        console.write(comparison_csv(rows, question))
    elif flags.printed_as == "json":
        found = comparison_json(rows, question, fits_with, checkpoint=served_checkpoint(model))
        console.write(f"{json.dumps(found, ensure_ascii=False)}\n")
    else:
        _show(flags, question, rows, fits_with)
        if flags.compile or flags.measure or flags.compiled_for:
            console.write_rendered(*mesh_checks.check_tables(plan, rows))
    _draw(flags, question, plan, rows)
    return fits and (not rows[0].targets or any(row.meets_targets for row in rows))


def _question(model: str, flags: CompareFlags, plan: ComparisonInputs) -> Question:
    """What was asked, by the names of the tables."""
    return Question(
        model=model,
        hardware=plan.hardware,
        software=plan.software,
        times=check_times(flags.times),
        skew=plan.skew,
        expert_load=flags.expert_load,
        efficiency=flags.efficiency,
        objective=check_objective(flags.objective),
        dispatch=flags.dispatch,
        usable_fraction=flags.usable_fraction,
        micro_batches=flags.micro_batches,
    )


def _show(flags: CompareFlags, question: Question, rows: list[MeshRow], fits_with: list[str]) -> None:
    from moejax.cli.mesh_sweep import sweep_tables
    from moejax.cli.mesh_tables import TableSetting, compare_tables

    several = len(set(flags.counts)) > 1
    tables, devices = (sweep_tables, flags.devices) if several else (compare_tables, f"{flags.counts[0]:,}")
    asked = TableSetting(question=question, devices=devices, fits_with=fits_with, width=console.width())
    console.write_rendered(*tables(rows, asked))


def _draw(flags: CompareFlags, question: Question, plan: ComparisonInputs, rows: list[MeshRow]) -> None:
    """The pictures that were asked for, as far as there is anything to draw."""
    if flags.plot is None and flags.pareto is None:
        return
    from moejax.planning import pareto_plot, plots

    fits = any(row.fits for row in rows)
    title = "\n".join(map(console.printable, question.title(rows[0], flags.devices).split("\n")))
    for path, draw in ((flags.plot, plots.draw), (flags.pareto, pareto_plot.draw)):
        if path is not None and fits:
            draw(rows, plan, title, Path(path))
        if path is not None and not flags.quiet:
            if fits:
                console.remark(f"drawn: {path}")
            else:
                console.warn(f"nothing fits, so there is nothing to draw: {path} is not written")
