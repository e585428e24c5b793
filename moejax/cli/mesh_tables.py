"""A comparison as tables for people: one for each batch size, readable at 80 columns and without colour."""

from collections.abc import Iterator, Sequence
from math import isfinite

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moejax.cli.console import printable
from moejax.planning.crossovers import gather_crossovers
from moejax.planning.export import winners
from moejax.planning.hardware import Hardware
from moejax.planning.rows import MeshRow, Phase

BAR = 12  # characters of the longest step
MOST_REFUSED = 8  # lines about splits that cannot be used

# What a step's time is made of: a letter, so that bars read without colour, and a colour.
PARTS = (
    ("w", "weights", "weights_seconds", "blue"),
    ("k", "kv cache", "kv_seconds", "cyan"),
    ("c", "compute beyond reading", "exposed_compute_seconds", "green"),
    ("l", "latency of collectives", "latency_seconds", "yellow"),
    ("x", "exchange", "bandwidth_seconds", "red"),
    ("o", "overhead", "overhead_seconds", "magenta"),
)


def compare_tables(
    rows: Sequence[MeshRow], hardware: Hardware, devices: int, usable_fraction: float
) -> Iterator[RenderableType]:
    """The parts to print, in order: the setting, then for each batch size its table, refusals and winners."""
    work = rows[0].workload
    yield Text(f"{devices} x {hardware.title}", style="bold")
    yield Text(
        f"{rows[0].usable_bytes / 1e9:.1f} of {hardware.memory_bytes / 1e9:.1f} GB usable each ({usable_fraction:g}), "
        f"{work.dtype}, prompts of {work.input_len:,} tokens, {work.context:,} in the cache"
    )
    used = [part for part in PARTS if any(_seconds(row.decode, part[2]) for row in rows)]
    for batch in dict.fromkeys(row.workload.batch_size for row in rows):
        chosen = [row for row in rows if row.workload.batch_size == batch]
        yield Padding(Text(f"batch {batch}", style="bold"), (1, 0, 0, 0))
        if any(row.fits for row in chosen):
            yield _table([row for row in chosen if row.fits])
        yield from (*_refused(chosen), *_winners(chosen))
    if used:
        legend = Text("step, in ms: ")
        for letter, name, _, colour in used:
            legend.append(f"{letter} ", style=colour).append(f"{name}  ")
        yield Padding(legend, (1, 0, 0, 0))
    yield Text(
        "d, e, t: devices along data, expert, tensor. read: experts that the busiest device reads per layer. "
        "imb: its rows over the mean. TTFT: in ms, of the whole batch. most: sequences that fit."
    )
    yield from _crossovers(rows, hardware)


def _table(rows: Sequence[MeshRow]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    for name, justify in (
        *(("d", "right"), ("e", "right"), ("t", "right"), ("dispatch", "left"), ("GB", "right"), ("read", "right")),
        *(("imb", "right"), ("step", "right"), ("", "left"), ("tok/s", "right"), ("TTFT", "right")),
        ("most", "right"),
    ):
        table.add_column(Text(name), justify=justify, no_wrap=True, vertical="bottom")  # type: ignore[arg-type]
    longest = max(row.decode.total for row in rows if row.decode)
    for row in rows:
        assert row.decode and row.prefill and row.footprint, "it fits"
        mesh = row.split.mesh
        dispatch = ("" if mesh.expert == 1 else row.split.dispatch) if row.built else "not built"
        table.add_row(
            *(str(size) for size in mesh.shape.values()),
            dispatch,
            f"{row.footprint.total / 1e9:.1f}",
            f"{row.decode.experts_read:.2f}",
            f"{row.decode.imbalance:.2f}",
            _milliseconds(row.decode.total),
            bar(row.decode, longest),
            _number(row.tokens_per_second_total),
            _milliseconds(row.prefill.total),
            f"{row.largest_batch:,}",
        )
    return table


def bar(phase: Phase, longest: float) -> Text:
    """The parts of a step as runs of letters, as long as their time; the longest step is BAR letters."""
    text, reached, drawn = Text(), 0.0, 0
    for letter, _, name, colour in PARTS:
        reached += _seconds(phase, name)
        end = round(reached / longest * BAR)
        text.append(letter * (end - drawn), style=colour)
        drawn = end
    return text


def _refused(rows: Sequence[MeshRow]) -> Iterator[Text]:
    """Why the others cannot be used; those for one reason on one line."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.why_not is not None and row.built:
            reasons.setdefault(row.why_not, []).append(row.label)
    for why, labels in list(reasons.items())[:MOST_REFUSED]:
        yield Text(printable(f"no: {'; '.join(labels)}: {why}"))
    if len(reasons) > MOST_REFUSED:
        yield Text(f"no: {len(reasons) - MOST_REFUSED} more reasons; --format json lists every split")


def _winners(rows: Sequence[MeshRow]) -> Iterator[Text]:
    for objective, winner in winners(rows).items():
        line = Text(f"best {objective}: ").append(winner["split"], style="bold").append(f" {winner['reason']}")
        yield line


def _crossovers(rows: Sequence[MeshRow], hardware: Hardware) -> Iterator[Text]:
    """When `gather` beats `replicated`, for the meshes with most devices along expert."""
    found = gather_crossovers(rows, hardware)
    widest = max((one.mesh.expert for one in found), default=0)
    for one in found:
        if one.mesh.expert != widest:
            continue
        which = f"{one.phase} of batch {one.workload.batch_size} on expert={widest}: gather"
        if one.bandwidth is None:
            yield Text(f"{which} sends no less than replicated, so slower links do not make it win")
        elif not isfinite(one.bandwidth):
            yield Text(f"{which} beats replicated on any link")
        else:
            assert hardware.link is not None, "there is no crossover without one"
            yield Text(
                f"{which} beats replicated on links below {one.bandwidth / 1e9:.3g} GB/s "
                f"(here {hardware.link.bandwidth / 1e9:.3g})"
            )


def _seconds(phase: Phase | None, name: str) -> float:
    return 0.0 if phase is None else getattr(phase, name)


def _milliseconds(seconds: float) -> str:
    return _number(seconds * 1e3)


def _number(value: float) -> str:
    """About three digits: 1.64, 15.1, 206, 7,051."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"
