"""The key/value cache: per layer, [B, K, S, H] keys and values of every token fed so far.

A token at position p of its sequence lives at position p, so padding never moves anything and a sequence can be
overwritten by the next one in its slot. Each head's keys are contiguous, which is the layout that a decode step reads
fastest.

16-bit caches are stored as their bits (`runtime/bits.py` has the reason).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Shaped

from moejax.families.config import ModelConfig
from moejax.families.kv_cache import CACHE_AXES, cache_shape
from moejax.moe.parallel import Parallel
from moejax.ops import reference
from moejax.runtime.bits import from_bits, stored_dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCache:
    """One layer's keys and values, stored as bits when they are 16 bits wide.

    read_positions: how many positions, from the first on, attention reads; None is all. Writing is not limited by it.
    """

    k: Shaped[Array, "B K S H"]
    v: Shaped[Array, "B K S H"]
    dtype: str = dataclasses.field(metadata={"static": True})
    read_positions: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def length(self) -> int:
        """Positions, S."""
        return self.k.shape[2]

    def keys(self) -> Float[Array, "B K S H"]:
        return from_bits(self.k[:, :, : self.read_positions], self.dtype)

    def values(self) -> Float[Array, "B K S H"]:
        return from_bits(self.v[:, :, : self.read_positions], self.dtype)


KVCache = tuple[LayerCache, ...]


def empty_cache(
    config: ModelConfig,
    batch: int,
    length: int,
    dtype: jax.typing.DTypeLike,
    parallel: Parallel,
    zeros: Callable[..., tuple[Array, ...]] = reference.zeros,
) -> KVCache:
    """A cache of zeros with `length` positions for each of `batch` slots, made where caches live.

    zeros: see `Ops.zeros`.
    """
    name = jnp.dtype(dtype).name
    shape = parallel.rules.local_shape(CACHE_AXES, cache_shape(config, batch, length))
    one = jax.ShapeDtypeStruct(shape, stored_dtype(name))

    def on_device() -> KVCache:
        keys_and_values = iter(zeros(*(one,) * 2 * config.num_layers))
        return tuple(LayerCache(k=k, v=v, dtype=name) for k, v in zip(keys_and_values, keys_and_values, strict=True))

    return parallel.map(on_device, (), parallel.spec(*CACHE_AXES))()


def place_cache(cache: KVCache, parallel: Parallel) -> KVCache:
    """The same, where caches live: slots split as the batch, heads as the key/value heads are."""
    return parallel.constrain(cache, *CACHE_AXES)


def take_sequences(source: KVCache, slots: Int[Array, " B_target"], positions: int) -> KVCache:
    """The first `positions` positions of the sequences in those slots, as a cache of its own."""

    def take(layer: LayerCache) -> LayerCache:
        return dataclasses.replace(layer, k=layer.k[slots, :, :positions], v=layer.v[slots, :, :positions])

    return tuple(take(layer) for layer in source)


def put_sequences(target: KVCache, source: KVCache, slots: Int[Array, " B_source"]) -> KVCache:
    """Copies sequence i of `source` over the first positions of slot `slots[i]` of `target`, whose others stay.

    A slot past the end of `target` is dropped.
    """

    def put(into: Array, new: Array) -> Array:
        return into.at[slots, :, : new.shape[2]].set(new, mode="drop")

    return tuple(
        dataclasses.replace(into, k=put(into.k, new.k), v=put(into.v, new.v))
        for into, new in zip(target, source, strict=True)
    )


def reading(cache: KVCache, positions: int | None) -> KVCache:
    """The same cache, of which attention reads only the first `positions` positions (None: all)."""
    return tuple(dataclasses.replace(layer, read_positions=positions) for layer in cache)
