"""The key/value cache: per layer, [B, K, S, H] keys and values of every token fed so far.

A token at position p of its sequence lives in slot p, so padding never moves anything and a row can be overwritten
by the next request. Each head's keys are contiguous, which is the layout that a decode step reads fastest.

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

    read_slots: how many slots, from the first on, attention reads; None is all. Writing is not limited by it.
    """

    k: Shaped[Array, "B K S H"]
    v: Shaped[Array, "B K S H"]
    dtype: str = dataclasses.field(metadata={"static": True})
    read_slots: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def length(self) -> int:
        """Slots, S."""
        return self.k.shape[2]

    def keys(self) -> Float[Array, "B K S H"]:
        return _from_bits(self.k[:, :, : self.read_slots], self.dtype)

    def values(self) -> Float[Array, "B K S H"]:
        return _from_bits(self.v[:, :, : self.read_slots], self.dtype)

    def write(self, k: Float[Array, "B K T H"], v: Float[Array, "B K T H"], starts: Int[Array, " B"]) -> "LayerCache":
        """Writes T new tokens into the slots from `starts` on, one start per row."""
        return dataclasses.replace(
            self,
            k=_write_rows(self.k, _to_bits(k, self.dtype), starts),
            v=_write_rows(self.v, _to_bits(v, self.dtype), starts),
        )


KVCache = tuple[LayerCache, ...]


def empty_cache(
    config: ModelConfig, batch: int, length: int, dtype: jax.typing.DTypeLike, parallel: Parallel
) -> KVCache:
    """A cache of zeros with `length` slots for each of `batch` rows, where caches live."""
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
    """The same, where caches live: rows split as the batch, heads as the key/value heads are."""
    return parallel.constrain(cache, *CACHE_AXES)


def copy_rows(target: KVCache, source: KVCache, rows: Int[Array, " B_source"]) -> KVCache:
    """Copies row i of `source` to row `rows[i]` of `target`, as many slots as both have; the other slots of that row
    become 0. A row number past the end of `target` is dropped, which is how padding rows are left out.
    """

    def copy(into: Array, new: Array) -> Array:
        slots = into.shape[2]
        full = jnp.pad(new[:, :, :slots], ((0, 0), (0, 0), (0, max(0, slots - new.shape[2])), (0, 0)))
        return into.at[rows].set(full, mode="drop")

    return tuple(
        dataclasses.replace(into, k=copy(into.k, new.k), v=copy(into.v, new.v))
        for into, new in zip(target, source, strict=True)
    )


def take_rows(source: KVCache, rows: Int[Array, " B_target"], slots: int) -> KVCache:
    """The first `slots` slots of those rows, as a cache of its own."""

    def take(layer: LayerCache) -> LayerCache:
        return dataclasses.replace(layer, k=layer.k[rows, :, :slots], v=layer.v[rows, :, :slots])

    return tuple(take(layer) for layer in source)


def put_rows(target: KVCache, source: KVCache, rows: Int[Array, " B_source"]) -> KVCache:
    """Copies row i of `source` over the first slots of row `rows[i]` of `target`, whose other slots stay.

    A row number past the end of `target` is dropped.
    """

    def put(into: Array, new: Array) -> Array:
        return into.at[rows, :, : new.shape[2]].set(new, mode="drop")

    return tuple(
        dataclasses.replace(into, k=put(into.k, new.k), v=put(into.v, new.v))
        for into, new in zip(target, source, strict=True)
    )


def reading(cache: KVCache, slots: int | None) -> KVCache:
    """The same cache, of which attention reads only the first `slots` slots (None: all)."""
    return tuple(dataclasses.replace(layer, read_slots=slots) for layer in cache)


def _write_rows(cache: Array, new: Array, starts: Array) -> Array:
    return jax.vmap(lambda row, part, start: lax.dynamic_update_slice(row, part, (0, start, 0)))(cache, new, starts)


def _storage_dtype(dtype: str) -> jax.typing.DTypeLike:
    return jnp.uint16 if jnp.dtype(dtype).itemsize == 2 else dtype


def _to_bits(x: Array, dtype: str) -> Array:
    x = x.astype(dtype)
    return x if _storage_dtype(dtype) == dtype else lax.bitcast_convert_type(x, jnp.uint16)


def _from_bits(x: Array, dtype: str) -> Array:
    return x if x.dtype == dtype else lax.bitcast_convert_type(x, jnp.dtype(dtype))
