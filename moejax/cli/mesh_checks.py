"""`moejax mesh compare --compile` and `--measure`: fills the rows of a comparison with what was found, and shows it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from moejax.cli import console
from moejax.planning.units import number

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from moejax._sharding.collectives import Collective
    from moejax.cli.mesh_flags import CompareFlags
    from moejax.planning.compare import ComparisonInputs
    from moejax.planning.compiled_counts import AllCounts
    from moejax.planning.hardware import Hardware
    from moejax.planning.rows import MeshRow

CALIBRATE = "write a file of these devices with: moejax mesh calibrate --output here.toml"


def check_measurable(devices: int, rows: "Sequence[MeshRow]", hardware: "Hardware", *, quiet: bool) -> None:
    """Starts JAX; raises ValueError when these splits cannot be timed on its devices, or were predicted for others."""
    from moejax.cli import startup

    startup.prepare_jax(quiet=quiet)
    from moejax.measuring.measured import check_measurable

    check_measurable(devices, [row.workload for row in rows])
    import jax

    check_same_kind(hardware, jax.devices()[0].device_kind, quiet=quiet)


def check_same_kind(hardware: "Hardware", kind: str, *, quiet: bool) -> None:
    """Raises ValueError when the figures are of another kind of device than that which is timed; a kind that may be
    the same, but need not, is a warning."""
    if hardware.kinds and kind.lower() not in hardware.kinds:
        raise ValueError(
            f"--measure times the {kind!r} here, but --hardware {hardware.name} has the figures of {hardware.title}, "
            f"so their difference would say nothing of the prediction; {CALIBRATE}"
        )
    if quiet:
        return
    if not hardware.kinds:
        console.warn(f"{hardware.name} does not say of what kind its device is, kinds = [{kind.lower()!r}] where it is")
    elif hardware.name == "cpu":  # the kind of all of them
        console.warn(f"the figures of cpu are those of {hardware.title}, not of this machine; {CALIBRATE}")


def compiled(plan: "ComparisonInputs", rows: "Sequence[MeshRow]", *, quiet: bool) -> "list[MeshRow]":
    """The rows with what XLA compiled for those of the largest batch."""
    from moejax.measuring.compiled import compile_rows

    with console.progress("compiling every split on simulated devices", quiet=quiet) as step:
        return compile_rows(
            plan.config, rows, lambda done, every: step(f"compiled {done} of {every} programs for simulated devices")
        )


def check_target(name: str | None, hardware: "Hardware", devices: int) -> None:
    """Raises ValueError where a target is asked for that is not so much of this hardware, or needs what is not here."""
    if name is not None:
        from moejax.compiling.splits import check_target

        check_target(name, hardware, devices)


def compiled_for(flags: "CompareFlags", plan: "ComparisonInputs", rows: "Sequence[MeshRow]") -> "AllCounts":
    """What the compiler of the accelerator that was named makes of every split that exists."""
    from moejax.compiling.splits import compile_splits

    assert flags.compiled_for is not None
    wanted = [(row.split, row.workload) for row in rows if row.built and row.footprint is not None]
    with console.progress(f"compiling every split for {flags.compiled_for}", quiet=flags.quiet) as step:
        return compile_splits(
            plan.config,
            wanted,
            flags.compiled_for,
            micro_batches=flags.micro_batches,
            told=lambda done, every: step(f"compiled {done} of {every} programs for {flags.compiled_for}"),
        )


def measured(source: str, plan: "ComparisonInputs", rows: "Sequence[MeshRow]", *, quiet: bool) -> "list[MeshRow]":
    """The rows with what was measured for those whose split exists."""
    from moejax.measuring.measured import measure_rows

    with console.progress("timing every split on these devices", quiet=quiet) as step:
        return measure_rows(source, plan, rows, lambda what: step(f"timing {what}"))


def check_tables(plan: "ComparisonInputs", rows: "Sequence[MeshRow]") -> "Iterator[RenderableType]":
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
    counted = [row for row in rows if row.compiled_for is not None and row.built]
    if counted:
        assert counted[0].compiled_for is not None
        yield Text(f"\nas XLA compiles them for {counted[0].compiled_for.target}, per device", style="bold")
        yield _counted_table(counted)
        for row in counted:
            assert row.compiled_for is not None
            for difference in row.compiled_for.differences:
                yield Text(f"differs: {row.label}, batch {row.batch_size}: {difference}")
    timed = [row for row in rows if row.measured is not None]
    if timed:
        yield Text("\npredicted and measured on these devices, in ms", style="bold")
        yield _measured_table(timed, plan.config.num_layers)
        reduced = next((row.measured.layers for row in timed if row.measured and row.measured.reduced), None)
        if reduced is not None:
            yield Text(
                f"reduced depth: the model's {plan.config.num_layers} layers do not fit these devices; predicted and "
                "measured are both of the layers in the table, with random weights"
            )


def _compiled_table(rows: "Sequence[MeshRow]") -> "Table":
    table = _table(("d", "e", "t", "dispatch", "", "collectives", "bytes, predicted = compiled"))
    for row in rows:
        check = row.compiled
        assert check is not None
        first = [*map(str, row.split.mesh.shape.values()), row.split.dispatch if row.names_dispatch else ""]
        for name, call in (("step", check.decode), ("prefill", check.prefill)):
            counts = _both(len(call.predicted), len(call.collectives))
            table.add_row(*first, name, counts, _both(_bytes(call.predicted), _bytes(call.collectives)))
            first = [""] * 4
        table.add_row(*first, "weights", "", _both(check.predicted_weight_bytes, check.weight_bytes))
        table.add_row(*first, "cache", "", _both(check.predicted_kv_bytes, check.kv_bytes))
    return table


def _counted_table(rows: "Sequence[MeshRow]") -> "Table":
    table = _table(("b", "d", "e", "t", "dispatch", "kernels a layer", "prefill's", "command buffers", "besides, GB"))
    for row in rows:
        found = row.compiled_for
        assert found is not None
        counts = (found.kernels, found.prefill_kernels, found.command_buffers)
        table.add_row(
            str(row.batch_size),
            *map(str, row.split.mesh.shape.values()),
            row.split.dispatch if row.names_dispatch else "",
            *("" if one is None else f"{one:g}" for one in counts),
            f"{found.temporary / 1e9:.3f}",
        )
    return table


def _both(predicted: int, compiled: int) -> str:
    return f"{predicted:,} {'=' if predicted == compiled else '!='} {compiled:,}"


def _bytes(collectives: "Sequence[Collective]") -> int:
    from moejax._sharding.collectives.collective import ITEM_SIZES

    return sum(one.elements * ITEM_SIZES[one.dtype] for one in collectives)


def _measured_table(rows: "Sequence[MeshRow]", layers: int) -> "Table":
    table = _table(
        ("b", "d", "e", "t", "dispatch", "layers", "step", "measured", "error", "prefill", "measured", "error")
    )
    for row in rows:
        found = row.measured
        assert found is not None
        table.add_row(
            str(row.workload.batch_size),
            *map(str, row.split.mesh.shape.values()),
            row.split.dispatch if row.names_dispatch else "",
            f"{found.layers} of {layers}" if found.reduced else str(found.layers),
            *_timed_cells(found.predicted_decode_seconds, found.decode_seconds, found.decode_error),
            *_timed_cells(found.predicted_prefill_seconds, found.prefill_seconds, found.prefill_error),
        )
    return table


def _timed_cells(predicted: float, found: float, error: float) -> list[str]:
    return [number(1e3 * predicted), number(1e3 * found), f"{error:+.0%}"]


def _table(names: Sequence[str]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    for name in names:
        table.add_column(name, justify="left" if name in ("dispatch", "") else "right", no_wrap=True)
    return table
