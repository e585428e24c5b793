"""What the devices can do, measured here and now: bytes per second of memory, FLOP per second of matrix products."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moejax.runtime.huge_pages import collapse, copied

ROUNDS = 7
# Far past any cache, and quick all the same.
ARRAY_BYTES = {"cpu": 2**28, "gpu": 2**32, "tpu": 2**30}
COLUMNS = 1024  # divides ARRAY_BYTES / 4
MATRIX_SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Rates of one device.

    copy_bytes_per_second: an array copied, read plus written.
    read_bytes_per_second: an array only read, by a float32 product with a matrix of two columns: XLA streams that at
        memory speed, where its plain sum uses one core.
    matrix_flops_per_second: a square product in the model's dtype with float32 results, two FLOPs per multiply-add.
    """

    copy_bytes_per_second: float
    read_bytes_per_second: float
    matrix_flops_per_second: float

    @property
    def bandwidth(self) -> float:
        """The larger of the two: what utilisation is taken of, so that it is never flattered."""
        return max(self.copy_bytes_per_second, self.read_bytes_per_second)


def measure_roofline(dtype: str, rounds: int = ROUNDS) -> Roofline:
    """Medians of several rounds on JAX's first device, after a warm-up each; on a CPU in huge pages, as weights lie.

    Small pages are read more slowly, and utilisation of their bandwidth would be flattered.
    """
    platform = jax.devices()[0].platform
    elements = ARRAY_BYTES.get(platform, ARRAY_BYTES["cpu"]) // 4
    side = MATRIX_SIDE.get(platform, MATRIX_SIDE["cpu"])
    array = jax.jit(lambda: jnp.ones((elements,), jnp.float32))()
    matrix = jax.jit(lambda: jnp.full((side, side), 0.5, jnp.dtype(dtype)))()
    narrow = jax.jit(lambda a: jnp.matmul(a.reshape(-1, COLUMNS), jnp.ones((COLUMNS, 2), jnp.float32)))
    product = jax.jit(lambda m: jnp.matmul(m, m, preferred_element_type=jnp.float32))
    # Every element read and written once. A plain copy would be elided, and one into new memory would time the
    # operating system's page faults: so signs are changed in place.
    negate = jax.jit(jnp.negative, donate_argnums=0)
    read = _seconds(narrow, copied(array), rounds=rounds)
    collapse(array)  # XLA changes in place only what it has made itself
    changed = _seconds(negate, array, rounds=rounds, in_place=True)
    multiplied = _seconds(product, matrix, rounds=rounds)
    return Roofline(
        copy_bytes_per_second=2 * 4 * elements / changed,
        read_bytes_per_second=4 * elements / read,
        matrix_flops_per_second=2 * side**3 / multiplied,
    )


def _seconds(
    function: Callable[[jax.Array], jax.Array], argument: jax.Array, *, rounds: int, in_place: bool = False
) -> float:
    """The median of a call; one that works in place gets its own result the next time."""
    result = jax.block_until_ready(function(argument))
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        result = jax.block_until_ready(function(result if in_place else argument))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
