"""Counts collectives in programs: which, over which mesh axes, how many elements, in a loop or not.

`compiled_collectives` reads what XLA made of a program, `lowered_collectives` what was asked for; both need only text.
"""

from moejax._sharding.collectives.collective import (
    COLLECTIVE_KINDS,
    Collective,
    CollectiveKind,
    collectives_table,
    wire_elements,
)
from moejax._sharding.collectives.compiled import compiled_collectives
from moejax._sharding.collectives.lowered import lowered_collectives

__all__ = [
    "COLLECTIVE_KINDS",
    "Collective",
    "CollectiveKind",
    "collectives_table",
    "compiled_collectives",
    "lowered_collectives",
    "wire_elements",
]
