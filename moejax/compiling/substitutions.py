"""Collectives that XLA puts in the place of others, where devices hold the same numbers afterwards. Imports no JAX.

XLA for TPUs, of whatever generation, does three: small gathers and the sums that `gather` scatters become sums of whole
arrays, into which each device puts its part, or from which it takes it; and a gather of what was gathered over other
axes becomes one over all of them. Whatever else differs from the closed forms is a difference.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from typing import NamedTuple

from moejax._sharding.collectives import Collective

AS_SUM = ("all-gather", "reduce-scatter")  # that XLA for TPUs makes all-reduces of


class Substitution(NamedTuple):
    """instead: what the program has.  of: what the closed forms have."""

    instead: Collective
    of: tuple[Collective, ...]


class Explained(NamedTuple):
    """substitutions: with how often.  unpredicted, missing: what they leave."""

    substitutions: Counter[Substitution]
    unpredicted: Counter[Collective]
    missing: Counter[Collective]


def explained(unpredicted: Counter[Collective], missing: Counter[Collective]) -> Explained:
    """What a program has and the closed forms do not, and the other way round, less known substitutions."""
    left, gone, found = Counter(unpredicted), Counter(missing), Counter[Substitution]()
    for instead in unpredicted.elements():
        of = next(_replaced(instead, gone), None)
        if of is not None:
            found[Substitution(instead, of)] += 1
            left[instead] -= 1
            gone.subtract(of)
    return Explained(found, +left, +gone)


def _replaced(instead: Collective, missing: Counter[Collective]) -> Iterator[tuple[Collective, ...]]:
    """What `instead` can stand for among those that are missing. XLA's own have no scope."""
    there = [one for one, number in missing.items() if number > 0]
    if instead.kind == "all-reduce":
        yield from ((one,) for one in there if one.kind in AS_SUM and _like(one, instead) == instead)
    if instead.kind == "all-gather":
        for first, second in permutations([one for one in there if one.kind == "all-gather"], 2):
            both = {*first.axes, *second.axes}
            if second.elements == instead.elements and both == set(instead.axes) and second.dtype == instead.dtype:
                if first.dtype == second.dtype and not set(first.axes) & set(second.axes):
                    yield first, second


def _like(one: Collective, other: Collective) -> Collective:
    return replace(one, kind=other.kind, scope=other.scope, in_loop=other.in_loop)
