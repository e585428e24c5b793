"""What `moejax mesh compare` does, and `scripts/mesh_config.py`: compare, print, draw. Imports no JAX."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from moejax.cli import console, mesh_checks
from moejax.planning.compare import compare_meshes, make_plan
from moejax.planning.export import comparison_json
from moejax.planning.hardware import load_hardware

FORMATS = ("table", "json")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The flags of the command, as they were given."""

    model: str
    devices: int
    hardware: str
    batch_sizes: str
    input_len: int
    context: int
    dtype: str
    expert_load: str | None
    objective: str
    dispatch: str
    usable_fraction: float
    format: str
    plot: str | None
    compile: bool
    measure: bool


def run(asked: Asked) -> None:
    """Compares, and prints a table or JSON.

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
    if asked.measure:
        mesh_checks.check_measurable(asked.devices, rows)
    if asked.compile:
        rows = mesh_checks.compiled(plan, rows)
    if asked.measure:
        rows = mesh_checks.measured(asked.model, plan, rows)
    if asked.format == "json":
        console.write(f"{json.dumps(comparison_json(rows, hardware), ensure_ascii=False)}\n")
    else:
        from moejax.cli.mesh_tables import compare_tables

        console.write_rendered(*compare_tables(rows, hardware, asked.devices, asked.usable_fraction))
        if asked.compile or asked.measure:
            console.write_rendered(*mesh_checks.check_tables(plan, rows))
    if asked.plot is not None:
        from moejax.planning.plots import draw

        title = f"{asked.model} on {asked.devices} x {hardware.title}, {rows[0].workload.dtype}"
        draw(rows, plan, title, Path(asked.plot))
        console.remark(f"drawn: {asked.plot}")


def batch_sizes(text: str) -> list[int]:
    """The numbers in "1,8,32".

    Raises:
        ValueError: for anything else.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,6}", word) and int(word) > 0 for word in words):
        raise ValueError(f"--batch-size must be whole numbers of at least 1, as in 8 or 1,8,32, got {text!r}")
    return list(dict.fromkeys(map(int, words)))
