"""Tables of splits as columns, of which a narrow terminal shows fewer, closer to each other."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from moejax.planning.rows import MeshRow

WIDE, NARROW = 2, 1  # characters between two columns
ON_THE_LEFT = ("mesh", "dispatch", "bar", "misses", "best")


class Column(NamedTuple):
    """One of a table: what it is, the words above it, its unit, its cells."""

    name: str
    heading: str
    unit: str
    cells: Sequence[str | Text]

    @property
    def width(self) -> int:
        return max(map(len, (self.heading, self.unit, *self.cells)))


def room(columns: Sequence[Column], width: int, gap: int) -> int:
    """What a terminal has beside these columns; the gaps are counted."""
    return width - sum(column.width for column in columns) - gap * len(columns)


def spared(columns: Sequence[Column], width: int, names: Sequence[str]) -> list[Column]:
    """The columns without those of `names`, one after the other, that a terminal has no room for."""
    kept = list(columns)
    for name in names:
        if room(kept, width, NARROW) < 0:
            kept = [column for column in kept if column.name != name]
    return kept


def drawn(columns: Sequence[Column], gap: int) -> Table:
    """The table, `gap` characters between its columns."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0), expand=False)
    for column in columns:
        heading = Text(f"{column.heading}\n{column.unit}" if column.unit else column.heading)
        table.add_column(heading, justify="left" if column.name in ON_THE_LEFT else "right", no_wrap=True)
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def meshes(rows: Sequence[MeshRow]) -> Column:
    """Devices along each axis, below each other, and a heading with a letter for each, as far apart."""
    found = [[str(size) for size in row.split.mesh.shape.values()] for row in rows]
    widths = [max(len(sizes[axis]) for sizes in found) for axis in range(3)]
    heading, *lines = (
        " ".join(word.rjust(wide) for word, wide in zip(words, widths, strict=True)) for words in ("det", *found)
    )
    return Column("mesh", heading, "", lines)


def dispatch(row: MeshRow) -> str:
    """Nothing where all dispatches are alike."""
    return row.dispatch if row.names_dispatch else ""
