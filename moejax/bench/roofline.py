"""What the devices can do, measured here and now: bytes per second of memory, FLOP per second of matrix products."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moejax.ops.native.ops import read_memory
from moejax.ops.table import resolve_backend
from moejax.runtime.huge_pages import collapse, copied

ROUNDS = 7
# Far past any cache, and quick all the same.
ARRAY_BYTES = {"cpu": 2**28, "gpu": 2**32, "tpu": 2**30}
COLUMNS = 1024  # divides ARRAY_BYTES / 4
MATRIX_SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Rates of one device.

    copy_bytes_per_second: an array changed in place, read plus written.
    read_bytes_per_second: an array only read, as a decode step reads its weights: on a CPU by a kernel that adds
        numbers up; elsewhere, and where that does not run, by a float32 product with a matrix of two columns, which XLA
        streams at memory speed, where its plain sum uses one core.
    matrix_flops_per_second: a square product in the model's dtype with float32 results, two FLOPs per multiply-add.
    """

    copy_bytes_per_second: float
    read_bytes_per_second: float
    matrix_flops_per_second: float


class Memory:
    """Measures memory again and again, in turns with what is compared with it: a machine's neighbours change its speed.

    On a CPU it lies in huge pages, as weights do: small ones are read more slowly, and utilisation of their bandwidth
    would be flattered.
    """

    def __init__(self) -> None:
        platform = jax.devices()[0].platform
        elements = ARRAY_BYTES.get(platform, ARRAY_BYTES["cpu"]) // 4
        self._bytes = 4 * elements
        self._changed = jax.jit(lambda: jnp.ones((elements,), jnp.float32))()
        self._read = copied(self._changed)
        collapse(self._changed)  # XLA changes in place only what it has made itself
        self._reading = jax.jit(read_memory if resolve_backend("auto", platform) == "native" else _product)
        # Every element read and written once. A plain copy would be elided, and one into new memory would time the
        # operating system's page faults: so signs are changed in place.
        self._negate = jax.jit(jnp.negative, donate_argnums=0)
        for compiled in (self.copy_rate, self.read_rate):
            compiled(1)

    def copy_rate(self, rounds: int) -> float:
        """Bytes per second of a copy, read plus written: the median."""
        return 2 * self._bytes / statistics.median(self._seconds_of_change() for _ in range(rounds))

    def read_rate(self, rounds: int = 5) -> float:
        """Bytes per second of reading alone: the median."""
        return self._bytes / statistics.median(_seconds(self._reading, self._read) for _ in range(rounds))

    def _seconds_of_change(self) -> float:
        began = time.perf_counter()
        self._changed = jax.block_until_ready(self._negate(self._changed))
        return time.perf_counter() - began


def _product(numbers: jax.Array) -> jax.Array:
    return jnp.matmul(numbers.reshape(-1, COLUMNS), jnp.ones((COLUMNS, 2), jnp.float32))


def measure_roofline(dtype: str, memory: Memory, rounds: int = ROUNDS) -> Roofline:
    """Medians of several rounds on JAX's first device, after a warm-up each."""
    platform = jax.devices()[0].platform
    side = MATRIX_SIDE.get(platform, MATRIX_SIDE["cpu"])
    matrix = jax.jit(lambda: jnp.full((side, side), 0.5, jnp.dtype(dtype)))()
    product = jax.jit(lambda m: jnp.matmul(m, m, preferred_element_type=jnp.float32))
    _seconds(product, matrix)
    return Roofline(
        copy_bytes_per_second=memory.copy_rate(rounds),
        read_bytes_per_second=memory.read_rate(rounds),
        matrix_flops_per_second=2 * side**3 / statistics.median(_seconds(product, matrix) for _ in range(rounds)),
    )


def _seconds(function: Callable[[jax.Array], jax.Array], argument: jax.Array) -> float:
    """Of a call."""
    began = time.perf_counter()
    jax.block_until_ready(function(argument))
    return time.perf_counter() - began
