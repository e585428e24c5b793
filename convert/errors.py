"""The one exception of this package, and how it names tensors."""

import reprlib
from collections.abc import Collection
from itertools import islice

LONGEST_MESSAGE = 2000
MOST_NAMED = 3


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, in one line: which file, which tensor, got and expected, what to do.

    Tensor and file names come from files that nobody has checked. So whatever does not print (line breaks, terminal
    control codes, lone surrogates) is escaped, and a message that a hostile name made long is cut.
    """

    def __init__(self, message: str) -> None:
        line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message[:LONGEST_MESSAGE])
        super().__init__(line if len(message) <= LONGEST_MESSAGE else f"{line} ...")


def shown(value: object) -> str:
    """A value from a file for a message: `repr`, but short, and safe where nesting would exhaust the stack."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    short.maxlist = 8
    return short.repr(value)


def listed(names: Collection[str]) -> str:
    """The first names, quoted, and the count of the others: `'a', 'b', 'c' and 5 more`."""
    named = ", ".join(map(repr, islice(names, MOST_NAMED)))
    return named if len(names) <= MOST_NAMED else f"{named} and {len(names) - MOST_NAMED} more"
