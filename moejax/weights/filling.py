"""From tensors in host memory, or read from a checkpoint, to a weight's value on its devices."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from moejax._sharding import LogicalAxes
from moejax.weights.layouts import Piece
from moejax.weights.storage import Stored

MOST_THREADS = 4  # that read the tensors of one array, each with a tensor's worth of memory of its own

# (entry of the leading axis or None, the part of that tensor, out): reads a part of one tensor.
ReadPart = Callable[[int | None, tuple[slice, ...], np.ndarray], None]
Empty = Callable[[tuple[int, ...], np.dtype], np.ndarray]


def filled(
    declared: Stored,
    piece: Piece,
    sharding: Callable[..., NamedSharding],
    empty: Empty,
    read: ReadPart,
) -> Stored:
    """The value whose numbers `read` gives. Each part that devices of this process hold is read once, and nothing else.

    Args:
        declared: the value of `piece` without numbers.
        sharding: where an array with these logical axes lives.
        empty: makes the host memory of each array's part, (shape, dtype); on a CPU devices keep it.
    """
    where = sharding(*piece.axes).addressable_devices_indices_map(declared.shape)
    hosts: dict[tuple[tuple[int, int], ...], list[np.ndarray]] = {}
    placed: list[list[Array]] = []
    for device, index in where.items():
        assert index is not None, "a sharding gives every device an index"
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, declared.shape, strict=True))
        if bounds not in hosts:
            hosts[bounds] = _host_arrays(declared, piece, sharding, empty, bounds, read)
        placed.append([jax.device_put(array, device) for array in hosts[bounds]])
    parts: Iterator[Sequence[Array]] = zip(*placed, strict=True)
    return declared.per_array(
        lambda array, axes: jax.make_array_from_single_device_arrays(array.shape, sharding(*axes), list(next(parts)))
    )


def stored(
    declared: Stored,
    piece: Piece,
    numbers: Array,
    sharding: Callable[..., NamedSharding],
    empty: Empty,
) -> Stored:
    """The value of numbers that are on the devices already, each its part."""
    shards = [(shard.index, np.asarray(shard.data)) for shard in numbers.addressable_shards]

    def read(entry: int | None, where: tuple[slice, ...], out: np.ndarray) -> None:
        wanted = where if entry is None else (slice(entry, entry + 1), *where)
        for index, part in shards:
            begins = [one.indices(size)[0] for one, size in zip(index, numbers.shape, strict=True)]
            inside = [(one.start - begin, one.stop - begin) for one, begin in zip(wanted, begins, strict=True)]
            if all(0 <= first and last <= size for (first, last), size in zip(inside, part.shape, strict=True)):
                out[...] = part[tuple(slice(*bound) for bound in inside)].reshape(out.shape)
                return
        raise AssertionError(f"no shard holds {wanted}")

    return filled(declared, piece, sharding, empty, read)


def _host_arrays(
    declared: Stored,
    piece: Piece,
    sharding: Callable[..., NamedSharding],
    empty: Empty,
    bounds: tuple[tuple[int, int], ...],
    read: ReadPart,
) -> list[np.ndarray]:
    """One device's part of each array, with the numbers at `bounds` of the weight."""
    arrays: list[np.ndarray] = []

    def part_of(array: Array, axes: LogicalAxes) -> np.ndarray:
        arrays.append(empty(sharding(*axes).shard_shape(array.shape), array.dtype))
        return arrays[-1]

    host = declared.per_array(part_of)
    entries, inside = (None, bounds) if piece.places is None else (range(*bounds[0]), bounds[1:])
    where = tuple(slice(*bound) for bound in inside)
    if entries is None:
        reads = [((), partial(read, None, where))]
    else:
        reads = [((number,), partial(read, entry, where)) for number, entry in enumerate(entries)]
    threads = min(len(reads), os.cpu_count() or 1, MOST_THREADS)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        list(pool.map(host.fill, [reads[thread::threads] for thread in range(threads)]))
    return arrays
