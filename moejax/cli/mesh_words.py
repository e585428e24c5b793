"""The sentences of a comparison: why splits are refused, which ones win and why, where one dispatch beats another."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import isfinite

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moejax._sharding.collectives import wire_elements
from moejax._sharding.collectives.collective import ITEM_SIZES
from moejax.cli.console import printable
from moejax.cli.mesh_answers import serve_line, target_line
from moejax.planning.advice import nearest
from moejax.planning.crossovers import GatherCrossover, gather_crossovers
from moejax.planning.hardware import Hardware
from moejax.planning.objectives import OBJECTIVES
from moejax.planning.ranking import first
from moejax.planning.rows import MeshRow
from moejax.planning.units import BYTES, FLOPS, LINK_RATES, amount
from moejax.runtime.buckets import MAX_SEQUENCES, MAX_SERVED_SEQUENCES

MOST_REFUSED = 8  # lines about splits that cannot be used


def batch_note(batch: int) -> str:
    """Which commands decode so many sequences at a time, where not all do."""
    if batch <= MAX_SEQUENCES:
        return ""
    if batch <= MAX_SERVED_SEQUENCES:
        return f" (at a time by moejax serve --max-batch {batch}; moejax decode takes {MAX_SEQUENCES} at a time)"
    return f" (more than moejax serve decodes at a time: {MAX_SERVED_SEQUENCES:,} at most)"


def verdicts(rows: Sequence[MeshRow], objective: str, checkpoint: str, width: int) -> Table:
    """Of one batch size: what meets the targets, the best split for each objective and why, the one that ranks first in
    numbers and how `checkpoint` is served so, why others are out."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for line in target_line(rows):
        table.add_row(*line)
    for goal in OBJECTIVES:
        for row in rows:
            if goal in row.best_for:
                line = Text.assemble((row.label, "bold"), " ", row.best_for[goal])
                table.add_row(f"best {goal}:", line)
    if (taken := first(rows, objective)) is not None:
        table.add_row("in numbers:", _in_numbers(taken))
        for line in serve_line(taken, checkpoint, width):
            table.add_row(*line)
    too_large = [f"{row.label} {row.why_not}" for row in rows if row.over_bytes]
    for line in (*too_large[:MOST_REFUSED], *_rest(too_large)):
        table.add_row("out:", printable(line))
    return table


def impossible(rows: Sequence[MeshRow]) -> Iterator[Table]:
    """The splits into which the model does not divide, whatever the batch; those of one cause together."""
    causes: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.why_not is not None and row.footprint is None:
            cause, _, _ = row.why_not.partition(f" of {row.split.mesh}")
            causes.setdefault(cause, {})[row.label] = None
    lines = [f"{'; '.join(labels)}: {cause}" for cause, labels in causes.items()]
    table = Table.grid(padding=(0, 1, 0, 0))
    for line in (*lines[:MOST_REFUSED], *_rest(lines)):
        table.add_row("impossible:", printable(line))
    if lines:
        yield table


def _rest(lines: Sequence[str]) -> Iterator[str]:
    if len(lines) > MOST_REFUSED:
        yield f"{len(lines) - MOST_REFUSED} more; --json lists every split"


def missing(rows: Sequence[MeshRow], fits_with: Sequence[str]) -> Text:
    """That nothing fits: what the nearest split lacks, and what would help."""
    closest = nearest(rows)
    if closest is None:
        return Text("no split of this model is possible over these devices")
    lacks = f": {closest.label} comes nearest and lacks {amount(closest.over_bytes, BYTES)} on each device"
    if fits_with:
        lacks += f". It fits with {', or with '.join(fits_with)}"
    elif largest := max(row.largest_batch or 0 for row in rows):
        lacks += f"; up to {largest:,} sequences fit"
    return Text.assemble(("nothing fits", "bold"), lacks)


def _in_numbers(row: MeshRow) -> Text:
    """What a split holds, computes and exchanges; --json has the same of every split."""
    assert row.decode and row.footprint, "it fits"
    held, mesh = row.footprint, row.split.mesh
    kinds = Counter((one.kind, "+".join(one.axes)) for one in row.decode.collectives)
    sent = sum(float(wire_elements(one, mesh.shape)) * ITEM_SIZES[one.dtype] for one in row.decode.collectives)
    exchanged = ", ".join(f"{count} {kind} over {axes}" for (kind, axes), count in kinds.items())
    return Text(
        f"{row.label}, per device: {amount(held.weights, BYTES)} of weights, {amount(held.kv, BYTES)} of cache, "
        f"{amount(held.activations, BYTES)} of activations; a step: {amount(row.decode.flops, FLOPS)}, "
        + (f"{exchanged}, {amount(sent, BYTES)} sent" if kinds else "nothing exchanged")
    )


def definitions(words: Sequence[tuple[str, Text]]) -> Table:
    """What words mean, one below the other."""
    return said(words, gap=2)


def said(lines: Iterable[tuple[str, Text]], *, gap: int = 1) -> Table:
    """Lines below each other, the words before them in a column of their own."""
    table = Table.grid(padding=(0, gap, 0, 0))
    for line in lines:
        table.add_row(*line)
    return table


def crossover_table(rows: Sequence[MeshRow], hardware: Hardware) -> Iterator[RenderableType]:
    """Below which link speed `gather` beats `replicated`, for the mesh with most devices along expert."""
    found = gather_crossovers(rows, hardware)
    if not found:
        return
    assert hardware.link is not None, "there is no crossover without one"
    widest = max((one.mesh for one in found), key=lambda mesh: (mesh.expert, -mesh.data))
    speeds = {(one.workload.batch_size, one.phase): _speed(one) for one in found if one.mesh == widest}
    heading = f"Links on which gather beats replicated over expert={widest.expert} "
    heading += f"(here {amount(hardware.link.bandwidth, LINK_RATES)})"
    yield Padding(Text(heading, style="bold"), (1, 0, 0, 0))
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    table.add_column("batch", justify="right")
    table.add_column("decode step")
    table.add_column("prefill")
    for batch in dict.fromkeys(batch for batch, _ in speeds):
        table.add_row(f"{batch:,}", speeds[batch, "decode"], speeds[batch, "prefill"])
    yield table


def _speed(one: GatherCrossover) -> str:
    if one.bandwidth is None:
        return "none: gather sends no less"
    return f"below {amount(one.bandwidth, LINK_RATES)}" if isfinite(one.bandwidth) else "any"
