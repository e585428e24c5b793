"""The key/value cache: per layer, [B, K, S, H] keys and values of every token fed so far.

A token at position p of its sequence lives at position p, so padding never moves anything and a sequence can be
overwritten by the next one in its slot. Each head's keys are contiguous, which is the layout that a decode step reads
fastest.

16-bit caches are stored as their bits (uint16). XLA:CPU computes in float32 where it has no bfloat16 kernel, and for
an update of a bfloat16 array that means converting the *whole array* to float32 and back at every step (measured:
619 us against 0.3 us for one layer's keys, docs/decisions.md). Bits are moved, never converted.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, Shaped

from moejax.families.config import ModelConfig
from moejax.moe.parallel import Parallel
from moejax.weights.declarations import CACHE_AXES, cached


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
        return _from_bits(self.k[:, :, : self.read_positions], self.dtype)

    def values(self) -> Float[Array, "B K S H"]:
        return _from_bits(self.v[:, :, : self.read_positions], self.dtype)

    def write(self, k: Float[Array, "B K T H"], v: Float[Array, "B K T H"], starts: Int[Array, " B"]) -> "LayerCache":
        """Writes T new tokens at the positions from `starts` on, one start per sequence."""
        return dataclasses.replace(
            self,
            k=_write_rows(self.k, _to_bits(k, self.dtype), starts),
            v=_write_rows(self.v, _to_bits(v, self.dtype), starts),
        )


KVCache = tuple[LayerCache, ...]


def empty_cache(
    config: ModelConfig, batch: int, length: int, dtype: jax.typing.DTypeLike, parallel: Parallel
) -> KVCache:
    """A cache of zeros with `length` positions for each of `batch` slots, where caches live."""
    shape = cached(config, batch, length).shape
    name = jnp.dtype(dtype).name
    stored = _storage_dtype(name)
    return place_cache(
        tuple(
            LayerCache(k=jnp.zeros(shape, stored), v=jnp.zeros(shape, stored), dtype=name)
            for _ in range(config.num_layers)
        ),
        parallel,
    )


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


def _write_rows(cache: Array, new: Array, starts: Array) -> Array:
    return jax.vmap(lambda row, part, start: lax.dynamic_update_slice(row, part, (0, start, 0)))(cache, new, starts)


def _storage_dtype(dtype: str) -> jax.typing.DTypeLike:
    return jnp.uint16 if jnp.dtype(dtype).itemsize == 2 else dtype


def _to_bits(x: Array, dtype: str) -> Array:
    x = x.astype(dtype)
    return x if _storage_dtype(dtype) == dtype else lax.bitcast_convert_type(x, jnp.uint16)


def _from_bits(x: Array, dtype: str) -> Array:
    return x if x.dtype == dtype else lax.bitcast_convert_type(x, jnp.dtype(dtype))
