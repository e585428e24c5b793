"""How many bytes a thread has on their way from memory at a time, from its machine code. Imports no JAX.

A load into registers is on its way until an instruction reads them. Asynchronous copies to shared memory go in groups:
`LDGDEPBAR` closes one, `DEPBAR.LE SB0, N` waits until only N are left. A loop is walked through more often than any
kernel has groups under way, so that what its turns leave to the next is there, and the last turn counts. Copies by the
tensor memory accelerator are not followed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_REGISTER = re.compile(r"\bR(\d+)\b")
_LEFT = re.compile(r"SB0,\s*0x([0-9a-f]+)")
NEVER = "!PT"  # the predicate of an instruction that is never carried out
_READS_ALL = ("STG", "STS", "ST.", "BRA", "RED", "ATOM")  # no register of theirs is written


class InFlight(NamedTuple):
    """Bytes of a thread on their way: at most, and on average where it waits for some of them."""

    most: int
    mean: int


@dataclass(kw_only=True)
class _Walk:
    pending: dict[int, int] = field(default_factory=dict)  # bytes by the first register that they come into
    open_group: int = 0
    groups: list[int] = field(default_factory=list)  # bytes of each closed group, the first one first
    most: int = 0
    waited: list[int] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(self.pending.values()) + self.open_group + sum(self.groups)


def in_flight(body: Sequence[tuple[str, str]], *, turns: int) -> InFlight:
    """What a thread has on its way in the last of `turns` turns of these (operation, operands)."""
    walk = _Walk()
    for _ in range(turns):
        walk.waited.clear()
        walk.most = walk.bytes
        for operation, operands in body:
            _step(walk, operation, operands)
    return InFlight(walk.most, round(sum(walk.waited) / max(1, len(walk.waited))))


def _step(walk: _Walk, operation: str, operands: str) -> None:
    if operands.endswith(NEVER):
        return
    if operation.startswith("LDGSTS"):
        walk.open_group += _width(operation)
    elif operation.startswith("LDGDEPBAR"):
        walk.groups.append(walk.open_group)
        walk.open_group = 0
    elif operation.startswith("DEPBAR") and (left := _LEFT.search(operands)):
        walk.waited.append(walk.bytes)
        kept = int(left[1], 16)
        walk.groups = walk.groups[len(walk.groups) - kept :] if kept else []
    else:
        target, _, sources = operands.partition(",")
        read = {int(one) for one in _REGISTER.findall(operands if operation.startswith(_READS_ALL) else sources)}
        came = [first for first, size in walk.pending.items() if read & set(range(first, first + max(1, size // 4)))]
        if came:
            walk.waited.append(walk.bytes)
            for first in came:
                del walk.pending[first]
        if operation.startswith("LDG.") and (register := _REGISTER.search(target)):
            walk.pending[int(register[1])] = _width(operation)
    walk.most = max(walk.most, walk.bytes)


def _width(operation: str) -> int:
    return 16 if ".128" in operation else 8 if ".64" in operation else 4
