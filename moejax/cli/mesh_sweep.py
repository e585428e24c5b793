"""Several numbers of devices as tables for people: for each batch size the best split of each number."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moejax.cli.mesh_answers import count_lines, miss_word, without
from moejax.cli.mesh_columns import NARROW, WIDE, Column, dispatch, drawn, meshes, room, spared
from moejax.cli.mesh_tables import TableSetting, beyond_measured, guess_words, setting
from moejax.cli.mesh_words import batch_note, definitions, missing, said
from moejax.planning.rows import MeshRow
from moejax.planning.serve_command import served_checkpoint
from moejax.planning.sweep import answer, first_of_each_count
from moejax.planning.units import BYTES, SECONDS, common_unit, number

SPARED = ("memory", "dispatch", "user", "best")  # columns that a terminal too narrow for all goes without


def sweep_tables(rows: Sequence[MeshRow], asked: TableSetting) -> Iterator[RenderableType]:
    """The parts to print, in order: the setting; for each batch size its table and answers; those over all batch sizes;
    what the words mean.
    """
    objective, width = asked.question.objective, asked.width
    yield from setting(rows[0], asked)
    if not any(row.fits for row in rows):
        yield Padding(missing(rows, asked.fits_with), (1, 0, 0, 0))
        yield definitions(guess_words(rows, asked.question))
        return
    yield from beyond_measured([row for row in rows if row.fits])
    checkpoint = served_checkpoint(asked.question.model)
    batches = list(dict.fromkeys(row.batch_size for row in rows))
    for batch in batches:
        chosen = [row for row in rows if row.batch_size == batch]
        yield Padding(Text.assemble((f"batch {batch:,}", "bold"), batch_note(batch)), (1, 0, 0, 0))
        if firsts := first_of_each_count(chosen, objective):
            yield _table(firsts, chosen, width)
        yield said([*count_lines(chosen, checkpoint, width), *without(chosen)])
    if len(batches) > 1:
        yield Padding(Text("of these batch sizes", style="bold"), (1, 0, 0, 0))
        yield said(count_lines(rows, checkpoint, width))
    yield Padding(definitions([*_words(rows[0], objective), *guess_words(rows, asked.question)]), (1, 0, 0, 0))


def _table(firsts: Sequence[MeshRow], rows: Sequence[MeshRow], width: int) -> Table:
    """A row for each number of devices; the last column names what `rows` has no better one for."""
    memory = common_unit((row.footprint.total for row in firsts if row.footprint), BYTES)
    ttft = common_unit((row.ttft_seconds for row in firsts), SECONDS)
    tpot = common_unit((row.tpot_seconds for row in firsts), SECONDS)
    held = [number(row.footprint.total / memory.scale) for row in firsts if row.footprint]
    columns = [
        Column("devices", "devices", "", [f"{row.devices:,}" for row in firsts]),
        meshes(firsts),
        Column("dispatch", "dispatch", "", [dispatch(row) for row in firsts]),
        Column("memory", "memory", memory.name, held),
        Column("TTFT", "TTFT", ttft.name, [number(row.ttft_seconds / ttft.scale) for row in firsts]),
        Column("TPOT", "TPOT", tpot.name, [number(row.tpot_seconds / tpot.scale) for row in firsts]),
        Column("user", "tok/s", "user", [number(row.tokens_per_second_per_request) for row in firsts]),
        Column("device", "tok/s", "device", [number(row.tokens_per_second_per_device) for row in firsts]),
    ]
    if firsts[0].targets:
        columns.append(Column("misses", "misses", "", [miss_word(row) for row in firsts]))
    found = vars(answer(rows)).items()
    best = [", ".join(name for name, one in found if one and one.devices == row.devices) for row in firsts]
    columns = spared([*columns, Column("best", "", "", best)], width, SPARED)
    return drawn(columns, WIDE if room(columns, width, WIDE) >= 0 else NARROW)


def _words(row: MeshRow, objective: str) -> list[tuple[str, Text]]:
    """What the words of the tables mean."""
    by = f"the best by {objective}"
    if row.targets:
        by += f" of those that meet {row.targets}, or the nearest to them"
    return [
        ("a row", Text(f"of all splits of so many devices {by}; --devices N alone, or --json, has all of them")),
        ("d e t", Text("devices along data, expert and tensor")),
        ("TTFT", Text("time to first token, of a whole batch that arrives at once")),
        ("TPOT", Text("time per token after the first: a step of decoding")),
        ("user", Text("of one sequence; the device's are those of all sequences, over the number of devices")),
        ("most", Text("the most tokens/s per device")),
    ]
