"""Random weights, made on their devices."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding

from moejax.runtime.bits import to_bits
from moejax.weights.filling import Empty, stored
from moejax.weights.layouts import Piece
from moejax.weights.storage import Plain, Rows, Stored
from moejax.weights.weight import Initialiser, Normal, Ones, Weight


def random_value(
    weight: Weight,
    piece: Piece,
    held: Sequence[int],
    declared: Stored,
    sharding: Callable[..., NamedSharding],
    seed: int,
    empty: Empty,
) -> Stored:
    """The value of one piece of a weight: see `random_piece`, and `filling.filled` for what it is put into."""
    bits = isinstance(declared, Rows)
    numbers = random_piece(weight, piece, held, declared.dtype, sharding(*piece.axes), seed, bits=bits)
    if isinstance(declared, Plain | Rows):
        return replace(declared, array=numbers)
    return stored(declared, piece, numbers, sharding, empty)


def random_piece(
    weight: Weight,
    piece: Piece,
    held: Sequence[int],
    dtype: jax.typing.DTypeLike,
    sharding: NamedSharding,
    seed: int,
    *,
    bits: bool = False,
) -> Array:
    """One array of a weight. Arrays that are alike share one compilation.

    Each logical tensor has a random key of its own, by its path, so the weights depend on the seed and not on layout,
    mesh or order. Empty places hold zeros.

    Args:
        held: the expert in each place of the weight's layer.  bits: whether the array is one of bits.
    """
    paths = [tensor.path for tensor in weight.tensors()]
    if piece.places is None:
        chosen, used = [paths[0]], [True]
    else:
        experts = [held[place] for place in piece.places]
        used = [expert < len(paths) for expert in experts]
        chosen = [paths[expert] if there else "" for expert, there in zip(experts, used, strict=True)]
    names = np.array([zlib.crc32(path.encode()) for path in chosen], np.uint32)
    make = _maker(weight.init, weight.shape, jnp.dtype(dtype).name, piece.places is not None, bits, sharding)
    # The words that `jax.random.key` makes of a seed, without the offset that a program may have set for its own.
    root: Any = np.array(divmod(seed % 2**64, 2**32), np.uint32)
    return make(root, names, np.array(used))


@lru_cache(maxsize=256)
def _maker(
    init: Initialiser, shape: tuple[int, ...], dtype: str, stacked: bool, bits: bool, sharding: NamedSharding
) -> Callable[..., Array]:
    # A device that holds them all makes one tensor after the other: numbers on their way take several times the memory
    # of those that stay. Devices that share them make them side by side, each its own.
    shared = stacked and sharding.spec[:1] not in ((), (None,))
    each = jax.vmap if shared else _one_by_one
    make = partial(_make, each=each, init=init, shape=shape, dtype=dtype, stacked=stacked)
    return jax.jit(lambda *args: to_bits(make(*args), dtype) if bits else make(*args), out_shardings=sharding)


def _one_by_one(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *stacks: lax.map(lambda parts: function(*parts), stacks)


def _make(
    root: Array,
    names: Array,
    used: Array,
    *,
    each: Callable[[Callable[..., Array]], Callable[..., Array]],
    init: Initialiser,
    shape: tuple[int, ...],
    dtype: str,
    stacked: bool,
) -> Array:
    """The tensors whose names have these hashes, stacked, or the only one."""

    def one(name: Array, there: Array) -> Array:
        made = _numbers(init, jax.random.fold_in(jax.random.wrap_key_data(root), name), shape, dtype)
        return jnp.where(there, made, jnp.zeros((), dtype))

    return each(one)(names, used) if stacked else one(names[0], used[0])


def _numbers(init: Initialiser, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    if isinstance(init, Normal):
        return jax.nn.initializers.normal(init.deviation)(key, shape, dtype)
    return jnp.full(shape, 1 if isinstance(init, Ones) else 0, dtype)
