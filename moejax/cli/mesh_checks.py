"""`moejax mesh compare --compile` and `--measure`: fills the rows of a comparison with what was found, and shows it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from moejax.cli import console

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from moejax.planning.checks import ComparedCall, CompiledCheck
    from moejax.planning.compare import Plan
    from moejax.planning.rows import MeshRow
    from sharding.collectives import Collective


def check_measurable(devices: int, rows: "Sequence[MeshRow]") -> None:
    """Starts JAX; raises ValueError when these splits cannot be timed on its devices."""
    from moejax.cli import startup

    startup.prepare_jax()
    from moejax.planning.measured import check_measurable

    check_measurable(devices, [row.workload for row in rows])


def compiled(plan: "Plan", rows: "Sequence[MeshRow]") -> "list[MeshRow]":
    """The rows with what XLA compiled for those of the largest batch."""
    from moejax.planning.compiled import compile_rows

    with console.progress("compiling every split on simulated devices", quiet=False):
        return compile_rows(plan.config, rows)


def measured(source: str, plan: "Plan", rows: "Sequence[MeshRow]") -> "list[MeshRow]":
    """The rows with what was measured for those whose split exists."""
    from moejax.planning.measured import measure_rows

    with console.progress("timing every split on these devices", quiet=False):
        return measure_rows(source, plan, rows)


def check_tables(plan: "Plan", rows: "Sequence[MeshRow]") -> "Iterator[RenderableType]":
    """What was compiled and what was measured, if anything was."""
    from rich.text import Text

    checked = [row for row in rows if row.compiled is not None]
    if checked:
        batch = checked[0].workload.batch_size
        yield Text(f"\ncompiled for simulated devices, float32, batch {batch}, per device and call", style="bold")
        yield _compiled_table(checked)
        equal = sum(row.compiled.equal for row in checked if row.compiled)
        yield Text(f"{equal} of {len(checked)} splits have every collective and every byte as predicted")
        for row in checked:
            assert row.compiled is not None
            for difference in row.compiled.differences:
                yield Text(f"differs: {row.label}: {difference}")
    timed = [row for row in rows if row.measured is not None]
    if timed:
        yield Text("\npredicted and measured on these devices, in ms", style="bold")
        yield _measured_table(timed)
        reduced = next((row.measured.layers for row in timed if row.measured and row.measured.reduced), None)
        if reduced is not None:
            yield Text(
                f"reduced depth: the model's {plan.config.num_layers} layers do not fit these devices; predicted and "
                "measured are both of the layers in the table, with random weights"
            )


def _compiled_table(rows: "Sequence[MeshRow]") -> "Table":
    table = _table(("d", "e", "t", "dispatch", "", "predicted", "compiled", "predicted bytes", "compiled bytes", ""))
    for row in rows:
        check = row.compiled
        assert check is not None
        first = [*map(str, row.split.mesh.shape.values()), row.split.dispatch if row.split.mesh.expert > 1 else ""]
        for name, cells in _compared(check):
            table.add_row(*first, name, *cells, "=" if cells[0] == cells[1] and cells[2] == cells[3] else "differs")
            first = [""] * 4
    return table


def _compared(check: "CompiledCheck") -> Iterator[tuple[str, list[str]]]:
    """Name and cells of each line: collectives predicted and compiled, bytes predicted and compiled."""
    for name, call in (("step", check.decode), ("prefill", check.prefill)):
        yield name, _call_cells(call)
    yield "weights", ["", "", f"{check.predicted_weight_bytes:,}", f"{check.weight_bytes:,}"]
    yield "cache", ["", "", f"{check.predicted_kv_bytes:,}", f"{check.kv_bytes:,}"]


def _call_cells(call: "ComparedCall") -> list[str]:
    counts = [f"{len(found):,}" for found in (call.predicted, call.collectives)]
    return [*counts, *(f"{_bytes(found):,}" for found in (call.predicted, call.collectives))]


def _bytes(collectives: "Sequence[Collective]") -> int:
    from sharding.collectives.collective import ITEM_SIZES

    return sum(one.elements * ITEM_SIZES[one.dtype] for one in collectives)


def _measured_table(rows: "Sequence[MeshRow]") -> "Table":
    table = _table(
        ("batch", "d", "e", "t", "dispatch", "layers", "step", "measured", "error", "prefill", "measured", "")
    )
    for row in rows:
        found = row.measured
        assert found is not None
        table.add_row(
            str(row.workload.batch_size),
            *map(str, row.split.mesh.shape.values()),
            row.split.dispatch if row.split.mesh.expert > 1 else "",
            f"{found.layers} (reduced)" if found.reduced else str(found.layers),
            *_timed_cells(found.predicted_decode_seconds, found.decode_seconds, found.decode_error),
            *_timed_cells(found.predicted_prefill_seconds, found.prefill_seconds, found.prefill_error),
        )
    return table


def _timed_cells(predicted: float, found: float, error: float) -> list[str]:
    return [f"{1e3 * predicted:.2f}", f"{1e3 * found:.2f}", f"{error:+.0%}"]


def _table(names: Sequence[str]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    for name in names:
        table.add_column(name, justify="left" if name in ("dispatch", "") else "right", no_wrap=True)
    return table
