"""A program as what its computations do in order: collectives, and calls of other computations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from moejax._sharding.collectives.collective import Collective


@dataclass(frozen=True, kw_only=True)
class Call:
    """A computation that runs another one, named `callee`: `in_loop` if over and over, `scope` around all it does."""

    callee: str
    in_loop: bool
    scope: str


Item = TypeVar("Item", bound=Collective | Call)
Body = Sequence[Collective | Call]


def executed(bodies: Mapping[str, Body], entry: str) -> list[Collective]:
    """The collectives of `entry` and of all that it calls, as often as it is called.

    Raises:
        ValueError: for a computation that is called and not in `bodies`.
    """
    # A computation called from many places is read once.
    known: dict[str, list[Collective]] = {}

    def expand(name: str) -> list[Collective]:
        if name not in bodies:
            raise ValueError(f"the program calls {name!r}, which its text does not define: pass the whole text")
        if name not in known:
            known[name] = [
                collective
                for item in bodies[name]
                for collective in ([item] if isinstance(item, Collective) else called(item))
            ]
        return known[name]

    def called(call: Call) -> list[Collective]:
        return [within(item, in_loop=call.in_loop, scope=call.scope) for item in expand(call.callee)]

    return expand(entry)


def within(item: Item, *, in_loop: bool, scope: str) -> Item:
    """The same collective or call, inside a loop if `in_loop`, under `scope`."""
    joined = "/".join(part for part in (scope, item.scope) if part)
    return replace(item, in_loop=item.in_loop or in_loop, scope=joined)
