"""How `moejax mesh compare` reads lists of numbers and times. Imports no JAX."""

import re
from typing import Any

import typer

from moejax.planning.splits import MOST_DEVICES

MAX_BATCH_SIZE = 100_000
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_TIME = re.compile(r"([0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})\s*([a-z]*)", re.IGNORECASE)
_COUNT = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def batch_sizes(text: str) -> list[int]:
    """The numbers in "1,8,32".

    Raises:
        ValueError: for anything else.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,6}", word) and 0 < int(word) <= MAX_BATCH_SIZE for word in words):
        raise ValueError(
            f"--batch-size must be whole numbers from 1 to {MAX_BATCH_SIZE:,}, as in 8 or 1,8,32, got {text!r:.80}"
        )
    return list(dict.fromkeys(map(int, words)))


def device_numbers(text: str) -> list[int]:
    """The numbers in "8", "1-16" or "1,2,4,8-16".

    Raises:
        ValueError: for anything else.
    """
    spans: list[range] = []
    for word in text.split(","):
        found = _COUNT.fullmatch(word.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last <= MOST_DEVICES:
            raise ValueError(
                f"--devices must be whole numbers from 1 to {MOST_DEVICES:,}, as in 8, 1-16 or 1,2,4,8, "
                f"got {text!r:.80}"
            )
        spans.append(range(first, last + 1))
    return [number for span in spans for number in span]


def duration(value: Any) -> float:
    """Seconds in "200ms", "1.5 s" or "800us".

    Raises:
        typer.BadParameter: for anything else; a number without a unit could be either.
    """
    found = _TIME.fullmatch(str(value).strip())
    if found and not found[2]:
        raise typer.BadParameter(f"must have a unit, got {value!r}; write {found[1]}ms or {found[1]}s")
    if not found or found[2].lower() not in _SECONDS or not float(found[1]):
        raise typer.BadParameter(
            f"must be a time above 0 in {', '.join(_SECONDS)}, as in 200ms or 1.5s, got {value!r:.80}"
        )
    return float(found[1]) * _SECONDS[found[2].lower()]
