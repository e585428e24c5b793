"""The answers of a comparison in words: what meets the targets, the fewest devices that do, how to serve it."""

import shlex
from collections.abc import Iterator, Sequence

from rich.text import Text

from moejax.planning.rows import MeshRow
from moejax.planning.serve_command import serve_command
from moejax.planning.sweep import answer, counts_without
from moejax.planning.units import SECONDS, amount, number

Line = tuple[str, Text]  # a word, and what is said of it
CONTINUED = " \\"  # a shell reads on behind it
LABELS = 17  # columns that the words before a line take


def target_line(rows: Sequence[MeshRow]) -> Iterator[Line]:
    """Of one batch size and number of devices: how many splits meet the targets, and which of them is the best."""
    targets, usable = rows[0].targets, [row for row in rows if row.fits and row.built]
    if not targets or not usable:
        return
    enough = [row for row in usable if row.meets_targets]
    if not enough:
        yield "targets:", _nearest(min(usable, key=lambda row: row.times_target), several=False)
        return
    best = max(enough, key=lambda row: row.tokens_per_second_per_device)
    said = f"{len(enough)} of {len(usable)} splits meet {targets}; of these the most tokens/s per device: "
    yield "targets:", Text.assemble(said, _in_short(best))


def serve_line(row: MeshRow | None, checkpoint: str, width: int) -> Iterator[Line]:
    """The command that serves a row, on as many lines as `width` columns take."""
    words = None if row is None else serve_command(row, checkpoint)
    if words is not None:
        yield "serve:", Text(command_text(words, width - LABELS))


def command_text(words: Sequence[str], width: int) -> str:
    """A command that a shell reads as one, broken before flags where a line would be longer than `width`."""
    parts: list[str] = []
    for word in map(shlex.quote, words):
        if word.startswith("--") or not parts:
            parts.append(word)
        else:
            parts[-1] += f" {word}"
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 1 + len(part) + len(CONTINUED) <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(part)
    return f"{CONTINUED}\n".join(lines)


def count_lines(rows: Sequence[MeshRow], checkpoint: str, width: int) -> Iterator[Line]:
    """Of several numbers of devices: the fewest that will do, which gives most on each, or what comes nearest."""
    found, batches = answer(rows), len({row.batch_size for row in rows}) > 1
    if found.nearest is not None:
        yield "targets:", _nearest(found.nearest, several=True)
    if found.fewest is None or found.most is None:
        return
    fewest, most, same = found.fewest, found.most, found.fewest is found.most
    does = f"meet {fewest.targets}" if fewest.targets else "hold the model"
    if several := len({row.devices for row in rows}) > 1:
        verb, also = ("is", ", and gives") if fewest.devices == 1 else ("are", ", and give")
        said = (
            f"{_devices(fewest)} {verb} the fewest that {does}{f'{also} the most tokens/s on each' if same else ''}: "
        )
        yield "fewest:", _found(said, fewest, batches)
        yield from serve_line(fewest, checkpoint, width)
    if not (several and same):
        met = ", the targets met" if most.targets else ""
        yield "most:", _found(f"on {_devices(most)} each gives the most tokens/s{met}: ", most, batches)
        yield from serve_line(most, checkpoint, width)


def without(rows: Sequence[MeshRow]) -> Iterator[Line]:
    """The numbers of devices of which the table has no line, and why."""
    for counts, why in zip(counts_without(rows), ("nothing fits", "copies of the model would be idle"), strict=True):
        if counts:
            listed = ", ".join(f"{count:,}" for count in counts)
            yield "out:", Text(f"{why} on {listed} device{'s' * (counts != [1])}")


def miss_word(row: MeshRow) -> str:
    """Which targets a row misses, in a word for a column."""
    missed = [name.upper() for name in row.misses]
    return "both" if len(missed) > 1 else missed[0] if missed else "none"


def _found(said: str, row: MeshRow, batches: bool) -> Text:
    return Text.assemble(said, _in_short(row), f", at batch {row.batch_size:,}" if batches else "")


def _devices(row: MeshRow) -> str:
    return "1 device" if row.devices == 1 else f"{row.devices:,} devices"


def _nearest(row: MeshRow, *, several: bool) -> Text:
    took = {"ttft": row.ttft_seconds, "tpot": row.tpot_seconds}
    missed = [
        f"{name.upper()} by {amount(over, SECONDS)} ({amount(took[name], SECONDS)})"
        for name, over in row.misses.items()
    ]
    where = f" on {_devices(row)} at batch {row.batch_size:,}" if several else ""
    return Text.assemble(
        f"no split meets {row.targets}; the nearest, ", (row.label, "bold"), f"{where}, misses {' and '.join(missed)}"
    )


def _in_short(row: MeshRow) -> Text:
    return Text.assemble(
        (row.label, "bold"),
        f", TTFT {amount(row.ttft_seconds, SECONDS)}, TPOT {amount(row.tpot_seconds, SECONDS)}, "
        f"{number(row.tokens_per_second_per_request)} tokens/s per user, "
        f"{number(row.tokens_per_second_per_device)} per device",
    )
