"""A comparison as tables for people: one for each batch size, readable at 80 columns and without colour."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moejax.cli.console import printable
from moejax.cli.mesh_answers import count_lines, miss_word
from moejax.cli.mesh_columns import NARROW, WIDE, Column, dispatch, drawn, meshes, room, spared
from moejax.cli.mesh_words import batch_note, crossover_table, definitions, impossible, missing, said, verdicts
from moejax.planning.objectives import OBJECTIVES
from moejax.planning.question import Question
from moejax.planning.rows import NOT_BUILT, MeshRow, Phase
from moejax.planning.serve_command import served_checkpoint
from moejax.planning.skew import UNIFORM
from moejax.planning.software import basis_said
from moejax.planning.units import BYTES, SECONDS, Unit, amount, common_unit, number
from moejax.runtime.buckets import MAX_SEQUENCES, MAX_SERVED_SEQUENCES

LONGEST_BAR, SHORTEST_BAR = 24, 4  # characters of the longest step; a terminal too narrow for the shortest shows none
ENOUGH_BAR = 10  # where it would be shorter, columns stand closer
SPARED = ("imb", "most", "peak", "read", "TTFT", "memory")  # columns that a terminal too narrow for all goes without

# What a step's time is made of: a letter, so that bars read without colour, and a colour.
TABLE_PARTS = {"experts": "experts", "cache": "attention"}
PARTS = (
    ("w", "weights", "weights_seconds", "blue"),
    ("k", "kv cache", "kv_seconds", "cyan"),
    ("c", "compute beyond reading", "exposed_compute_seconds", "green"),
    ("l", "latency of collectives", "latency_seconds", "yellow"),
    ("x", "exchange", "bandwidth_seconds", "red"),
    ("o", "overhead", "overhead_seconds", "magenta"),
)


class Units(NamedTuple):
    """Of all tables of a comparison."""

    memory: Unit
    step: Unit
    first: Unit


@dataclass(frozen=True, kw_only=True)
class TableSetting:
    """What rows were asked for with, and where they are shown.

    devices: as they were asked for.  fits_with: flags of which each makes a model fit that does not.
    width: columns of the terminal.
    """

    question: Question
    devices: str
    fits_with: Sequence[str]
    width: int


def compare_tables(rows: Sequence[MeshRow], asked: TableSetting) -> Iterator[RenderableType]:
    """The parts to print, in order: the setting; for each batch size its table, refusals and winners; what the words
    mean.
    """
    question, objective, width = asked.question, asked.question.objective, asked.width
    yield from setting(rows[0], asked)
    checkpoint = served_checkpoint(question.model)
    usable = [row for row in rows if row.fits]
    if not usable:
        fewest = min(row.workload.batch_size for row in rows)
        rows = [row for row in rows if row.workload.batch_size == fewest]
        yield from (
            Padding(verdicts(rows, objective, checkpoint, width), (1, 0, 0, 0)),
            *impossible(rows),
            missing(rows, asked.fits_with),
            definitions(guess_words(rows, question)),
        )
        return
    yield from beyond_measured(usable)
    units = _units(usable)
    for batch in dict.fromkeys(row.workload.batch_size for row in rows):
        chosen = [row for row in rows if row.workload.batch_size == batch]
        yield Padding(Text.assemble((f"batch {batch:,}", "bold"), batch_note(batch)), (1, 0, 0, 0))
        fitting = [row for row in chosen if row.fits]
        if fitting:
            yield _table(fitting, units, OBJECTIVES[objective].column, width)
        yield verdicts(chosen, objective, checkpoint, width)
        if not fitting:
            yield missing(chosen, ())
    if rows[0].targets and len({row.batch_size for row in rows}) > 1:
        yield Padding(Text("of these batch sizes", style="bold"), (1, 0, 0, 0))
        yield said(count_lines(rows, checkpoint, width))
    yield from (Padding(table, (1, 0, 0, 0)) for table in impossible(rows))
    words = _words(usable, objective)
    if question.software in question.hardware.software and question.software != "moejax":
        title = question.hardware.software[question.software].title
        words.append(("splits", Text(f"moejax's, by kernels of {title}; which of them it runs itself is not checked")))
    yield Padding(definitions([*words, *guess_words(rows, question)]), (1, 0, 0, 0))
    yield from crossover_table(rows, question.hardware)


def setting(row: MeshRow, asked: TableSetting) -> Iterator[Text]:
    """What was compared, of which `row` is one."""
    work, question = row.workload, asked.question
    yield Text(printable(f"{question.model} on {asked.devices} x {question.hardware.title}"), style="bold")
    memory = f"{amount(row.usable_bytes, BYTES)} of {amount(question.hardware.memory_bytes, BYTES)} usable each"
    lengths = f"prompts of {work.input_len:,} tokens, {work.context:,} in the cache"
    yield Text(f"{memory} ({question.usable_fraction:g}), {work.dtype}, {lengths}")
    yield Text(basis_said(question.hardware, question.software, work.dtype, question.times))
    if question.skew != UNIFORM:
        yield Text(printable(question.choosing_said))


def guess_words(rows: Sequence[MeshRow], question: Question) -> list[tuple[str, Text]]:
    """The figures that nobody measured, in the hardware file's words."""
    return [("guess", Text(printable(said))) for said in question.guesses(rows)]


def beyond_measured(rows: Sequence[MeshRow]) -> Iterator[Text]:
    """A warning where times stand on sizes that nobody measured."""
    beyond = max(phase.beyond for row in rows for phase in (row.decode, row.prefill) if phase)
    if beyond > 1:
        said = f"some times are guesses: sizes up to {beyond:.3g} times outside of what was measured"
        yield Text(said, style="yellow")


def _units(rows: Sequence[MeshRow]) -> Units:
    """Those in which the smallest number of each column is worth showing."""
    memory = [row.footprint.total for row in rows if row.footprint]
    steps, firsts = ([phase.seconds for row in rows if (phase := getattr(row, name))] for name in ("decode", "prefill"))
    return Units(common_unit(memory, BYTES), common_unit(steps, SECONDS), common_unit(firsts, SECONDS))


def _table(rows: Sequence[MeshRow], units: Units, ranked_by: str, width: int) -> Table:
    """The rows, with a bar as long as the terminal leaves room for."""
    columns = spared(_columns(rows, units, ranked_by), width, [name for name in SPARED if name != ranked_by])
    gap = WIDE if room(columns, width, WIDE) >= ENOUGH_BAR else NARROW
    if (free := room(columns, width, gap)) >= SHORTEST_BAR:
        steps = [row.decode for row in rows if row.decode is not None]
        longest = max(step.seconds for step in steps)
        bars = [bar(step, longest, min(free, LONGEST_BAR)) for step in steps]
        place = next(number for number, column in enumerate(columns) if column.name == "step")
        columns.insert(place + 1, Column("bar", "", "", bars))
    return drawn(columns, gap)


def _columns(rows: Sequence[MeshRow], units: Units, ranked_by: str) -> list[Column]:
    """All but the bar; a star marks what the rows are ranked by."""
    cells: dict[str, tuple[str, list[str]]] = {
        "dispatch": ("", [dispatch(row) for row in rows]),
        "memory": (units.memory.name, []),
        "read": ("", []),
        "imb": ("", []),
        "step": (units.step.name, []),
        "tok/s": ("", [number(row.tokens_per_second_total) for row in rows]),
        "TTFT": (units.first.name, []),
        "most": ("", [f"{row.largest_batch:,}" for row in rows]),
        "peak": ("tok/s", [number(row.peak_tokens_per_second) if row.built else "" for row in rows]),
    }
    if from_tables(rows):
        cells["tables"] = ("", [_measured_parts(row) for row in rows])
    if rows[0].targets:
        cells["misses"] = ("", [miss_word(row) if row.built else "" for row in rows])
    for row in rows:
        assert row.decode and row.prefill and row.footprint, "it fits"
        cells["memory"][1].append(number(row.footprint.total / units.memory.scale))
        cells["read"][1].append(f"{row.decode.experts_read:.2f}")
        cells["imb"][1].append(f"{row.decode.imbalance:.2f}")
        cells["step"][1].append(number(row.decode.seconds / units.step.scale))
        cells["TTFT"][1].append(number(row.prefill.seconds / units.first.scale))
    headings = {ranked_by: f"{ranked_by}*"}
    others = (Column(name, headings.get(name, name), unit, values) for name, (unit, values) in cells.items())
    return [meshes(rows), *others]


def from_tables(rows: Sequence[MeshRow]) -> bool:
    """Whether measured tables were looked up."""
    return any(phase is not None and phase.measured for row in rows for phase in (row.decode, row.prefill))


def _measured_parts(row: MeshRow) -> str:
    """What of a step is of measured tables, and of the prefill, where that is something else."""
    said = []
    for phase in (row.decode, row.prefill):
        parts = [TABLE_PARTS[part] for part in phase.measured] if phase else []
        said.append("both" if len(parts) == len(TABLE_PARTS) else "".join(parts) or "none")
    return said[0] if said[0] == said[1] else "/".join(said)


def bar(phase: Phase, longest: float, length: int) -> Text:
    """The parts of a step as runs of letters, as long as their time; the longest step is `length` letters."""
    text, reached, drawn = Text(), 0.0, 0
    for letter, _, name, colour in PARTS:
        reached += getattr(phase, name)
        end = round(reached / longest * length)
        text.append(letter * (end - drawn), style=colour)
        drawn = end
    return text


def _words(rows: Sequence[MeshRow], objective: str) -> list[tuple[str, Text]]:
    """What the words and letters of the tables mean."""
    step = Text("of decoding: ")
    for letter, name, field, colour in PARTS:
        if any(getattr(row.decode, field) for row in rows):
            step.append(f"{letter} ", style=colour).append(f"{name}  ")
    targets = rows[0].targets
    by = ", those first that miss no target; the others by how far they are from the one that they miss most"
    said = "what is as measured, of the step and, where it differs, of the prefill; the rest is fitted"
    last = "; those that leave copies of the model idle come last" if any(row.idle_copies for row in rows) else ""
    words = [
        *([("tables", Text(said))] if from_tables(rows) else []),
        (
            "*",
            Text(f"what the rows are ranked by{by if targets else ''}{last}"),
        ),
        ("d e t", Text("devices along data, expert and tensor")),
        ("read", Text("distinct experts that the busiest device reads, per layer; 1/t of each along tensor")),
        ("imb", Text("rows (token and expert) of the busiest device over the mean")),
        ("step", step),
        ("TTFT", Text("time to first token, of a whole batch that arrives at once")),
        (
            "most",
            Text(
                f"sequences that fit: a power of two, at most {MAX_SERVED_SEQUENCES:,} as moejax serve decodes at "
                f"a time (moejax decode: {MAX_SEQUENCES})"
            ),
        ),
        ("peak", Text("tokens/s with so many sequences")),
    ]
    if targets:
        words.append(("misses", Text(f"of the targets {targets}, where TPOT is a step of decoding")))
    if not all(row.built for row in rows):
        ragged = "what an exchange could bring that sends a token only to the devices of its experts; no dispatch does"
        words.append((NOT_BUILT, Text(ragged)))
    return words
