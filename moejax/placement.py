"""Where a model's parameters and its cache live on a mesh, from their declarations alone."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from moejax.cache import CACHE_AXES
from moejax.config import ModelConfig
from moejax.parallel import Parallel
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


def cache_placements(config: ModelConfig, rules: Rules, batch: int, length: int, dtype: str) -> list[Placement]:
    """Keys and values of every layer, for `batch` rows of `length` tokens.

    Raises:
        ValueError: when the batch does not divide, naming its size and the mesh.
    """
    shape, itemsize = (batch, config.num_kv_heads, length, config.head_dim), jnp.dtype(dtype).itemsize
    return [
        placement(f"cache.{layer}.{name}", shape, dtype, itemsize, CACHE_AXES, rules)
        for layer in range(config.num_layers)
        for name in ("keys", "values")
    ]
