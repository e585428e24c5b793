"""What a message is held to: its names and numbers, in their order, and never the sentence around them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

Kind = TypeVar("Kind", bound=BaseException)


def says(text: str, *facts: object) -> None:
    """Fails unless `text` has each fact as whole words, each after the one before.

    The order says which number is which: "3 of 8" is not "8 of 3". Whole words: 1 is not in 10, 1.5, -1 or 1,024.
    """
    assert facts and all(map(str, facts)), "a message without a fact says nothing"
    end = 0
    for fact in map(str, facts):
        found = whole(fact).search(text, end)
        assert found, f"{fact!r} is not in {text[end:]!r}, the rest of {text!r}"
        end = found.end()


def whole(fact: str) -> re.Pattern[str]:
    before = r"(?<![\w-])(?<!\d[.,])" if fact[0].isdigit() else r"(?<!\w)" if fact[0].isalpha() else ""
    after = r"(?!\w)(?![.,]\d)" if fact[-1].isdigit() else r"(?!\w)" if fact[-1].isalpha() else ""
    return re.compile(before + re.escape(fact) + after)


@contextmanager
def refuses(kind: type[Kind], *facts: object) -> Iterator[pytest.ExceptionInfo[Kind]]:
    """Fails unless the body raises `kind` with these facts in its message."""
    with pytest.raises(kind) as raised:
        yield raised
    says(str(raised.value), *facts)


def error_line(err: str, *facts: object) -> None:
    """Fails unless what a command wrote to stderr is one line, "error: ...", with these facts."""
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    says(err, *facts)
