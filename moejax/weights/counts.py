"""Parameters, and elements that are held and multiplied, of declared weights: the only place where they are computed.

Imports no JAX. Bytes are elements times an item's size, FLOPs two for each element that a row is multiplied with.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from moejax._sharding import LogicalAxes, Placement, Rules, placement
from moejax._sharding.collectives.collective import ITEM_SIZES
from moejax.weights.weight import Part, Weight


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Parameters of a model.

    total: all.  active: those that one token uses.  per_expert: of one expert of a layer.
    """

    total: int
    active: int
    per_expert: int


def count_parameters(weights: Sequence[Weight], experts_per_token: int) -> Counts:
    """Parameters of a model whose tokens use `experts_per_token` experts of each layer."""
    shared = sum(math.prod(weight.shape) for weight in weights if weight.experts is None)
    of_experts = [weight for weight in weights if weight.experts is not None]
    return Counts(
        total=shared + sum(math.prod(weight.shape) * (weight.experts or 0) for weight in of_experts),
        active=shared + experts_per_token * sum(math.prod(weight.shape) for weight in of_experts),
        per_expert=sum(math.prod(weight.shape) for weight in of_experts) // max(1, num_moe_layers(weights)),
    )


def num_moe_layers(weights: Iterable[Weight]) -> int:
    """Layers that have a router and experts."""
    return len({weight.parameter.split(".moe.")[0] for weight in weights if weight.part == "experts"})


@dataclass(frozen=True, kw_only=True)
class DeviceShare:
    """What one device holds of each part of a model, all layers together, in elements.

    elements: of all weights.  multiplied: of matrices that tokens are multiplied with.
    Of `experts`, both are of one expert of every layer.
    """

    elements: Mapping[Part, int]
    multiplied: Mapping[Part, int]


def device_share(weights: Iterable[Weight], rules: Rules) -> DeviceShare:
    """What one device holds of weights that are split by `rules`.

    Raises:
        ValueError: when an axis does not divide, naming the weight, the axis, its size and the mesh.
    """
    elements, multiplied = defaultdict[Part, int](int), defaultdict[Part, int](int)
    for weight in weights:
        local = math.prod(placement(weight.parameter, weight.shape, "", 1, weight.axes, rules).local_shape)
        elements[weight.part] += local
        multiplied[weight.part] += local * weight.is_matrix
    return DeviceShare(elements=elements, multiplied=multiplied)


def weight_placements(weights: Iterable[Weight], rules: Rules, dtype: str) -> list[Placement]:
    """Where every parameter lives: a layer's experts are one array [places, ...], padded to divide over the mesh.

    Raises:
        ValueError: when an axis does not divide, naming the weight, the axis, its size and the mesh.
    """
    return [
        placement(weight.parameter, shape, dtype, ITEM_SIZES[dtype], axes, rules)
        for weight in weights
        for shape, axes in [stacked(weight, rules)]
    ]


def stacked(weight: Weight, rules: Rules) -> tuple[tuple[int, ...], LogicalAxes]:
    """Shape and axes of all that a weight has, experts along a leading axis of places."""
    if weight.experts is None:
        return weight.shape, weight.axes
    return (num_places(weight.experts, rules.parts("experts")), *weight.shape), ("experts", *weight.axes)


def num_places(num_experts: int, peers: int) -> int:
    """Places for experts on `peers` devices that hold equally many; those beyond the experts are empty."""
    return -(-num_experts // peers) * peers
