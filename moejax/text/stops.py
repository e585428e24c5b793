"""Stop strings in a text that arrives in parts, special tokens in it that it does not show."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class _Mark(NamedTuple):
    """One character of the text that is searched: whether it is shown, and whether a stop may begin or end with it."""

    shown: bool
    begins: bool
    ends: bool


_SHOWN = _Mark(shown=True, begins=True, ends=True)


@dataclass(frozen=True, kw_only=True)
class _Searched:
    """A text that is searched, and where its characters are in the one that is held back."""

    text: str
    marks: list[_Mark]
    places: "range | list[int]"

    def first_end(self, stop: str, after: int) -> tuple[int, int] | None:
        """(start, end) of the first `stop` that ends past the `after` characters held back before."""
        start = -1
        while (start := self.text.find(stop, start + 1)) >= 0:
            last = start + len(stop) - 1
            if self.places[last] >= after and self.marks[start].begins and self.marks[last].ends:
                return self.places[start], self.places[last] + 1
        return None

    def begun(self, stop: str) -> int | None:
        """Where a `stop` begins that may end in what is still to come."""
        for length in range(min(len(stop) - 1, len(self.text)), 0, -1):
            start = len(self.text) - length
            if self.marks[start].begins and self.text.endswith(stop[:length]):
                return self.places[start]
        return None


class StopMatcher:
    """Finds the first stop string in a text that arrives in parts, the same one however the text is divided.

    The match is the one a reader of single characters sees first: the earliest *end*; of several that end there, the
    longest. (The earliest *start* would have to wait for text that may never come.) Text that may be the beginning of a
    stop string is held back.

    A text may have special tokens in it that it does not show. A stop string is found in the text as it is shown, and
    also with such tokens in their places, each as a whole: "a</s>" is there, "s" in the middle of a hidden one is not.

    Args:
      stops: the stop strings.
      include: whether a stop string that was found is part of the text.

    Raises:
      ValueError: a stop string is empty.
    """

    def __init__(self, stops: tuple[str, ...], *, include: bool) -> None:
        if not all(stops):
            raise ValueError(f"got an empty stop string in {stops!r}, expected at least one character in each")
        self._stops = stops
        self._include = include
        self._held = ""
        self._marks: list[_Mark] = []
        self._stop: str | None = None

    def push(self, text: str, *, shown: bool = True, search: bool = True) -> tuple[str, str | None]:
        """(text released by this part, the stop string found or None). After a stop: no text, and the same stop.

        `shown=False` is for the text of one special token that is not shown. `search=False` lets stop strings that end
        in this part pass; one that begins in it may still be found later.
        """
        if self._stop is not None:
            return "", self._stop
        before, last = len(self._held), len(text) - 1
        self._held += text
        self._marks += [_SHOWN if shown else _Mark(shown=False, begins=i == 0, ends=i == last) for i in range(last + 1)]
        found = [
            (end, -len(stop), start, stop)
            for searched in self._searched()
            for stop in self._stops
            if (place := searched.first_end(stop, before)) is not None
            for start, end in [place]
        ]
        if found and search:
            end, _, start, self._stop = min(found)
            return self._released(end if self._include else start), self._stop
        begun = [place for one in self._searched() for stop in self._stops if (place := one.begun(stop)) is not None]
        return self._released(min(begun, default=len(self._held))), None

    def flush(self) -> str:
        """The text still held back, when no more will come."""
        return "" if self._stop is not None else self._released(len(self._held))

    def _searched(self) -> Iterator[_Searched]:
        yield _Searched(text=self._held, marks=self._marks, places=range(len(self._held)))
        places = [place for place, mark in enumerate(self._marks) if mark.shown]
        if len(places) < len(self._held):
            text = "".join(self._held[place] for place in places)
            yield _Searched(text=text, marks=[_SHOWN] * len(places), places=places)

    def _released(self, length: int) -> str:
        """What is shown of the first characters that are held back, which are then no longer."""
        marked = zip(self._held[:length], self._marks, strict=False)
        text = "".join(character for character, mark in marked if mark.shown)
        self._held, self._marks = self._held[length:], self._marks[length:]
        return text
