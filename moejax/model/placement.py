"""Where the parameters of a model's modules live on a mesh."""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jax.sharding import NamedSharding

from moejax.moe.parallel import Parallel
from sharding import Placement, Rules, placement


def param_placements(abstract: dict[str, nnx.Param[Any]], rules: Rules) -> list[Placement]:
    """One entry per parameter, in the order of the model.

    Raises:
        ValueError: when an axis does not divide, naming parameter, axis, size and mesh.
    """
    placements = []
    for path, variable in abstract.items():
        leaf = variable.get_value()
        axes = variable.get_metadata("out_sharding")
        placements.append(placement(path, leaf.shape, leaf.dtype.name, leaf.dtype.itemsize, axes, rules))
    return placements


def param_sharding(abstract: dict[str, nnx.Param[Any]], parallel: Parallel) -> Callable[[str], NamedSharding]:
    """Where each parameter lives, by its path."""
    return lambda path: parallel.sharding(*abstract[path].get_metadata("out_sharding"))
