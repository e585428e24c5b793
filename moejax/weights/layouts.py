"""How the experts of a layer are packed into arrays, for what computes them and for a mesh.

`pack` makes a weight's value of logical tensors, `unpack` gives the logical tensors back; between them loading, export
and resharding need to know nothing of a layout. The number of weights per layer does not depend on that of experts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from moejax._sharding import LogicalAxes, Rules
from moejax.weights.storage import Plain, Stored
from moejax.weights.weight import Weight

LayoutName = Literal["stacked", "separate"]


class Piece(NamedTuple):
    """One array of a layout.

    shape, axes: of the whole array.  places: those that its leading axis goes through; None for a weight that is one
    tensor and has no such axis.
    """

    shape: tuple[int, ...]
    axes: LogicalAxes
    places: tuple[int, ...] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Separate:
    """The experts of a layer as values of their own: entry j is the j-th place of each device, [peers, ...]."""

    parts: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.parts) * self.parts[0].shape[0], *self.parts[0].shape[1:]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def per_array(self, make: Callable[[Any, LogicalAxes], Any]) -> "Separate":
        return Separate(parts=tuple(part.per_array(make) for part in self.parts))


def _stacked(weight: Weight, places: int, peers: int) -> list[Piece]:
    """One array [P, ...], which kernels index themselves."""
    return [Piece((places, *weight.shape), ("experts", *weight.axes), tuple(range(places)))]


def _separate(weight: Weight, places: int, peers: int) -> list[Piece]:
    """An array [peers, ...] per place of a device: XLA:CPU copies a whole stack before a loop over parts of it."""
    each = places // peers
    return [
        Piece((peers, *weight.shape), ("experts", *weight.axes), tuple(range(place, places, each)))
        for place in range(each)
    ]


LAYOUTS: dict[LayoutName, Callable[[Weight, int, int], list[Piece]]] = {"stacked": _stacked, "separate": _separate}


def pieces(weight: Weight, layout: LayoutName, places: int, peers: int) -> list[Piece]:
    """The arrays of a weight; `places` for experts on `peers` devices."""
    if weight.experts is None:
        return [Piece(weight.shape, weight.axes, None)]
    return LAYOUTS[layout](weight, places, peers)


def declare(
    weight: Weight,
    layout: LayoutName,
    places: int,
    rules: Rules,
    dtype: jax.typing.DTypeLike,
    storage: type[Stored] = Plain,
) -> Any:
    """A weight's value without numbers: shapes and dtypes of its arrays."""
    found = tuple(
        storage.declare(
            piece.shape, piece.axes, tuple(1 if axis is None else rules.parts(axis) for axis in piece.axes), dtype
        )
        for piece in pieces(weight, layout, places, rules.parts("experts"))
    )
    return Separate(parts=found) if weight.experts is not None and layout == "separate" else found[0]


def pack(
    weight: Weight,
    declared: Any,
    layout: LayoutName,
    places: int,
    peers: int,
    make: Callable[[Piece, Stored], Stored],
) -> Any:
    """A weight's value: `make(piece, declared value)` gives the numbers of each part."""
    parts = tuple(
        make(piece, part) for piece, part in zip(pieces(weight, layout, places, peers), _parts(declared), strict=True)
    )
    return Separate(parts=parts) if isinstance(declared, Separate) else parts[0]


def unpack(weight: Weight, value: Any, layout: LayoutName, held: Sequence[int], peers: int) -> Mapping[str, Array]:
    """The logical tensors of a weight's value, by path; of an expert in several places the first.

    held: the expert in each place.
    """
    tensors = list(weight.tensors())
    found: dict[str, Array] = {}
    for piece, part in zip(pieces(weight, layout, len(held), peers), _parts(value), strict=True):
        numbers = part.numbers()
        if piece.places is None:
            return {tensors[0].path: numbers}
        for entry, place in enumerate(piece.places):
            if held[place] < len(tensors):
                found.setdefault(tensors[held[place]].path, numbers[entry])
    return {tensor.path: found[tensor.path] for tensor in tensors}


def take(weight: Weight, value: Any, layout: LayoutName, held: Sequence[int], peers: int, expert: int | None) -> Array:
    """One logical tensor of a weight's value: that of `expert`, or of a weight that is one tensor."""
    for piece, part in zip(pieces(weight, layout, len(held), peers), _parts(value), strict=True):
        if piece.places is None:
            return part.numbers()
        for entry, place in enumerate(piece.places):
            if held[place] == expert:
                return part.per_array(lambda array, _, entry=entry: array[entry : entry + 1]).numbers()[0]
    raise AssertionError(f"no place holds expert {expert} of {weight.path}")


def put(
    weight: Weight,
    value: Any,
    layout: LayoutName,
    held: Sequence[int],
    peers: int,
    new: Mapping[int | None, Array],
    replace: Callable[[Stored, Piece, tuple[int, ...], Array], Stored],
) -> Any:
    """A weight's value with other logical tensors in it, by expert (None of a weight that is one tensor).

    Args:
        replace: (part, its piece, entries of its leading axis, tensors [entries, ...]) -> that part with these tensors;
            of a piece without such an axis there are no entries, and the tensor has the shape of the weight.
    """

    def one(piece: Piece, part: Stored) -> Stored:
        if piece.places is None:
            return replace(part, piece, (), new[None])
        entries = tuple(entry for entry, place in enumerate(piece.places) if held[place] in new)
        if not entries:
            return part
        return replace(part, piece, entries, jnp.stack([new[held[piece.places[entry]]] for entry in entries]))

    parts = [one(*both) for both in zip(pieces(weight, layout, len(held), peers), _parts(value), strict=True)]
    return Separate(parts=tuple(parts)) if isinstance(value, Separate) else parts[0]


def _parts(value: Any) -> tuple[Any, ...]:
    return value.parts if isinstance(value, Separate) else (value,)
