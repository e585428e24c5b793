"""Which expert is where: physical experts, the places for their weights, and the tables that a program is given.

Imports no JAX.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class PhysicalExperts:
    """What the places of every layer hold.

    A layer has P places, equally many on each device along `expert`, in the order of the devices. An expert may be in
    several places of a layer (replicas, which share its rows), and a place may be empty.

    num_experts: E.  held: [L][P], the expert in each place, E where it is empty.

    Raises:
        ValueError: when a layer lacks an expert, naming both.
    """

    num_experts: int
    held: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for layer, held in enumerate(self.held):
            if missing := set(range(self.num_experts)) - set(held):
                raise ValueError(f"layer {layer}: no place holds expert {min(missing)} of {self.num_experts}")
            if unknown := [expert for expert in held if not 0 <= expert <= self.num_experts]:
                raise ValueError(
                    f"layer {layer}: a place holds expert {unknown[0]}, the experts are 0 to {self.num_experts - 1}, "
                    f"and {self.num_experts} is an empty place"
                )

    @classmethod
    def in_order(cls, num_layers: int, num_experts: int, num_places: int) -> "PhysicalExperts":
        """Expert i in place i of every layer, the places after the last expert empty."""
        held = tuple(min(place, num_experts) for place in range(num_places))
        return cls(num_experts, (held,) * num_layers)

    @property
    def num_places(self) -> int:
        return len(self.held[0]) if self.held else 0

    @property
    def empty(self) -> int:
        """Places of a layer that hold no expert."""
        return sum(expert == self.num_experts for expert in self.held[0]) if self.held else 0

    def tables(self) -> Int[np.ndarray, "L 3 P"]:
        """For each place: the expert that it holds, which of that expert's places it is, and how many there are."""
        return np.array([_table(held) for held in self.held], np.int32).reshape(len(self.held), 3, self.num_places)

    def by_expert(self, rows: Int[np.ndarray, "d L P"]) -> Int[np.ndarray, "d L E"]:
        """Rows that the places of each layer computed, summed over those of an expert."""
        summed = np.zeros((*rows.shape[:2], self.num_experts + 1), rows.dtype)
        for layer, held in enumerate(self.held):
            for place, expert in enumerate(held):
                summed[:, layer, expert] += rows[:, layer, place]
        return summed[..., : self.num_experts]


def _table(held: Sequence[int]) -> list[list[int]]:
    return [
        list(held),
        [list(held[:place]).count(expert) for place, expert in enumerate(held)],
        [list(held).count(expert) for expert in held],
    ]
