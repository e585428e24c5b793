"""Keywords that a function does not have: an error with the nearest one that it has."""

import functools
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def known_keywords(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """`function`, which raises ValueError for an unknown keyword."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if unknown := next((name for name in kwargs if name not in names), None):
            near = get_close_matches(unknown, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"
            raise ValueError(f"{function.__name__} has no option {unknown!r}; {hint}")
        return function(*args, **kwargs)

    return wrapped
