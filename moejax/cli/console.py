"""Writing to the terminal: results to stdout, remarks to stderr. Styles only where a terminal shows them."""

import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if (
    TYPE_CHECKING
):  # imported by `write_rendered` when there is something to render: errors and streamed text need no rich
    from rich.console import RenderableType

PIPED_WIDTH = 120  # columns of a table that no terminal shows; rich would take 80
PLAIN_SECONDS = 10.0  # between lines that say what a long command does, where no terminal shows it

# Whatever moves the cursor, changes colours or sets titles begins with a control character (C0, DEL, C1).
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


_errors_only = False
_passing = False  # whether the cursor stands behind a line that passes


class StdoutClosed(Exception):
    """Whoever read stdout has gone (`| head`): there is nobody left to write for."""


def print_errors_only() -> None:
    """From now on nothing but errors is printed: another process of this run prints the same."""
    global _errors_only
    _errors_only = True


def write(text: str) -> None:
    """Writes text to stdout at once. On a terminal control characters are escaped: a model can generate any.

    Raises:
        StdoutClosed: when nobody reads it any more.
    """
    _emit(_CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text) if sys.stdout.isatty() else text)


def write_rendered(*parts: "RenderableType") -> None:
    """Writes tables and styled text to stdout, as wide as the terminal. Text of unknown origin must be `printable`.

    Raises:
        StdoutClosed: when nobody reads it any more.
    """
    from rich.console import Console

    styled, text = _styled(sys.stdout), io.StringIO()
    console = Console(
        file=text,
        width=width(),
        color_system="auto" if styled else None,
        force_terminal=styled,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for part in parts:
        console.print(part)
    # rich fills lines with spaces, and ends a table with an empty line
    _emit("".join(f"{line.rstrip()}\n" for line in text.getvalue().rstrip().splitlines()))


def width() -> int:
    """Columns that tables may take."""
    from rich.console import Console

    return Console().width if sys.stdout.isatty() else PIPED_WIDTH


def printable(value: object) -> str:
    """Text for one line: whatever does not print is escaped, line breaks too."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value))


def remark(text: str) -> None:
    """A quiet line on stderr, beside the result."""
    if _errors_only:
        return
    _write_line(f"\x1b[2m{printable(text)}\x1b[0m" if _styled(sys.stderr) else printable(text))


def passing(text: str) -> None:
    """A quiet line on stderr that whatever comes next on a terminal replaces."""
    global _passing
    if _styled(sys.stderr) and not _errors_only:
        sys.stderr.write(f"\r\x1b[K\x1b[2m{printable(text)}\x1b[0m")
        sys.stderr.flush()
        _passing = True
    else:
        remark(text)


def warn(text: str) -> None:
    """A warning on stderr, in one line."""
    if _errors_only:
        return
    _write_line(f"{_coloured('warning:', 33)} {printable(text)}")


def error(text: str) -> None:
    """An error on stderr, in one line."""
    _write_line(f"{_coloured('error:', 31)} {printable(text)}")


def has_terminal() -> bool:
    """Whether somebody watches stderr on a terminal that can move its cursor."""
    return _styled(sys.stderr)


@contextmanager
def progress(text: str, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Shows `text` on a terminal's stderr while the block runs, then whatever the block tells the function it is given.

    On a terminal each text replaces the one before, and an empty one clears it, which lets the block write a line to
    stdout. Elsewhere a text is a line of its own, if PLAIN_SECONDS have passed since the last one: a log that nobody
    watches shows that a long command lives, and a short command leaves nothing. Nothing at all when `quiet`.
    """
    shown = not quiet and not _errors_only
    last = time.monotonic()

    def step(what: str) -> None:
        nonlocal last
        if not shown or (what and _errors_only):
            return
        if _styled(sys.stderr):
            _clear_passing()
            sys.stderr.write(f"\r\x1b[K\x1b[2m{printable(what)} ...\x1b[0m" if what else "\r\x1b[K")
            sys.stderr.flush()
        elif what and time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            _write_line(f"{printable(what)} ...")

    if _styled(sys.stderr):
        step(text)
    try:
        yield step
    finally:
        step("")


def _emit(text: str) -> None:
    if _errors_only:
        return
    _clear_passing()
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise StdoutClosed from error


def _write_line(line: str) -> None:
    _clear_passing()
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _clear_passing() -> None:
    global _passing
    if _passing:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
        _passing = False


def _coloured(word: str, colour: int) -> str:
    return f"\x1b[1;{colour}m{word}\x1b[0m" if _styled(sys.stderr) else word


def _styled(stream: TextIO) -> bool:
    """Whether styles may be used: on a terminal that has them, unless NO_COLOR says no (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
