"""Collectives that XLA puts in the place of others are told from those that differ."""

from collections import Counter

import pytest

from moejax._sharding.collectives import Collective
from moejax._sharding.collectives.collective import CollectiveKind
from moejax.compiling.substitutions import Substitution, explained


def collective(
    kind: CollectiveKind, axes: tuple[str, ...], elements: int, dtype: str = "int32", scope: str = "sample"
) -> Collective:
    return Collective(kind=kind, axes=axes, elements=elements, dtype=dtype, in_loop=False, scope=scope)


def own(kind: CollectiveKind, axes: tuple[str, ...], elements: int, dtype: str = "int32") -> Collective:
    """One of XLA's, which has no scope."""
    return collective(kind, axes, elements, dtype, scope="")


GATHER = collective("all-gather", ("expert",), 8)
SCATTER = collective("reduce-scatter", ("expert",), 32768, "bfloat16", "moe")


@pytest.mark.parametrize("of", [GATHER, SCATTER], ids=["a gather", "a scattered sum"])
def test_a_sum_in_the_place_of_another(of: Collective) -> None:
    instead = own("all-reduce", of.axes, of.elements, of.dtype)
    found = explained(Counter({instead: 2}), Counter({of: 3}))
    assert found.substitutions == {Substitution(instead, (of,)): 2}
    assert not found.unpredicted and found.missing == {of: 1}


def test_one_gather_in_the_place_of_two() -> None:
    inner, outer = collective("all-gather", ("expert",), 16), collective("all-gather", ("data",), 32)
    instead = own("all-gather", ("data", "expert"), 32)
    found = explained(Counter({instead: 1}), Counter({inner: 1, outer: 1}))
    assert found == (Counter({Substitution(instead, (inner, outer)): 1}), Counter(), Counter())


@pytest.mark.parametrize(
    "instead",
    [
        own("all-reduce", ("expert",), 9),
        own("all-reduce", ("tensor",), 8),
        own("all-reduce", ("expert",), 8, "float32"),
        own("all-to-all", ("expert",), 8),
        own("all-gather", ("data", "expert"), 8),
    ],
    ids=["other elements", "another axis", "another dtype", "another kind", "one gather for half of it"],
)
def test_what_differs_stays_a_difference(instead: Collective) -> None:
    found = explained(Counter({instead: 1}), Counter({GATHER: 1}))
    assert not found.substitutions
    assert found.unpredicted == {instead: 1} and found.missing == {GATHER: 1}
