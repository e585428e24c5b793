"""The key/value cache of a model: its shape, and where it lives. Imports no JAX."""

from moejax._sharding import LogicalAxes, Placement, Rules, placement
from moejax._sharding.collectives.collective import ITEM_SIZES
from moejax.families.config import ModelConfig

CACHE_AXES: LogicalAxes = ("batch", "kv_heads", "sequence", "head_dim")


def cache_shape(config: ModelConfig, batch: int, length: int) -> tuple[int, int, int, int]:
    """[B, K, S, H], keys or values of one layer for `batch` sequences of `length` positions."""
    return batch, config.num_kv_heads, length, config.head_dim


def cache_elements_per_token(config: ModelConfig) -> int:
    """Elements of the cache that one token takes, over all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim


def cache_placements(config: ModelConfig, rules: Rules, batch: int, length: int, dtype: str) -> list[Placement]:
    """Where keys and values of every layer live, for `batch` sequences of `length` positions.

    Raises:
        ValueError: when the batch does not divide, naming its size and the mesh.
    """
    shape = cache_shape(config, batch, length)
    return [
        placement(f"cache.{layer}.{name}", shape, dtype, ITEM_SIZES[dtype], CACHE_AXES, rules)
        for layer in range(config.num_layers)
        for name in ("keys", "values")
    ]
