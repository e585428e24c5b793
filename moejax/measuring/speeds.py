"""Measures how fast this machine runs the engine's own operations, by how many rows share what they read.

Everything that is read is larger than caches, as a model's weights and cache are, and on a CPU in huge pages, as they
are.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from moejax.families.config import AttentionPolicy
from moejax.measuring.measured import typical
from moejax.model.cache import LayerCache
from moejax.ops.expert import Expert
from moejax.ops.routing import Routing
from moejax.ops.table import Ops, make_ops, prepare_backend
from moejax.planning.hardware import Curve, Operation
from moejax.runtime.huge_pages import copied
from moejax.weights.layouts import Separate
from moejax.weights.storage import Stored

RUNS = 2  # of each, in every round; the shorter counts
ENOUGH_SECONDS = 0.02  # that a run should take, so that starting it does not count
ROWS = (1, 2, 4, 8, 16, 32, 64, 256)
GROUPS = (1, 2, 4, 8)  # query heads of a key/value head
BYTES = 2**27  # of weights of products, and of a cache: more than what caches keep from one pass to the next
MANY_ROWS = 64  # from here on products are bound by arithmetic, and a quarter of the weights is enough
WIDTH, EXPERT_WIDTH, EXPERTS = 1024, 2048, 16
KEY_HEADS, HEAD_WIDTH, SLOTS, PROMPT = 8, 128, 2048, 512


def engine_operations() -> Ops:
    """What the engine computes with on JAX's first device."""
    return make_ops(prepare_backend("auto", jax.default_backend()))


class Timed:
    """One operation at one number of rows, timed in rounds that may be far apart."""

    def __init__(
        self,
        operation: Operation,
        rows: int,
        flops: float,
        once: Callable[[Array, Any], Array],
        x: Array,
        arguments: Any,
    ) -> None:
        """Compiles a loop of `once(x, arguments)`, whose result it is given next time, that takes long enough.

        flops: of a single run of it.
        """
        self.operation: Operation = operation
        self.rows = rows
        self._flops, self._x, self._arguments = flops, x, arguments
        self._seconds: list[float] = []

        @jax.jit
        def loop(times: Array, x: Array, arguments: Any) -> Array:
            return lax.fori_loop(0, times, lambda _, x: once(x, arguments), x)

        self._loop, self._times = loop, 1
        while (seconds := self._shortest()) < ENOUGH_SECONDS:
            self._times *= 2 if seconds > ENOUGH_SECONDS / 4 else 8

    def measure(self) -> None:
        """One round."""
        self._seconds.append(self._shortest() / self._times)

    @property
    def speed(self) -> float:
        """FLOP per second, reading included, typical of the rounds."""
        return self._flops / typical(self._seconds)

    def _shortest(self) -> float:
        seconds = []
        for _ in range(RUNS):
            began = time.perf_counter()
            jax.block_until_ready(self._loop(jnp.int32(self._times), self._x, self._arguments))
            seconds.append(time.perf_counter() - began)
        return min(seconds)


def timed_operations(dtype: str) -> list[Timed]:
    """Every operation of the engine at every number of rows."""
    ops = engine_operations()
    return [*project_runs(ops, dtype), *experts_runs(ops, dtype), *attend_runs(ops, dtype)]


def curves(timed: Iterable[Timed]) -> dict[Operation, Curve]:
    """What was measured, as a hardware file has it: to four digits, since more differ from run to run."""
    found: dict[Operation, dict[int, float]] = {}
    for one in timed:
        found.setdefault(one.operation, {})[one.rows] = float(f"{one.speed:.4g}")
    return dict(found)


def project_runs(ops: Ops, dtype: str) -> Iterator[Timed]:
    """Products with square weights, one after the other."""
    count = BYTES // (WIDTH * WIDTH * jnp.dtype(dtype).itemsize)
    weights = [_stored_weight(ops, _numbers((WIDTH, WIDTH), dtype, WIDTH)) for _ in range(count)]

    def once(x: Array, weights: list[Stored]) -> Array:
        for w in weights:
            (y,) = ops.project(x, w)
            x = y.astype(x.dtype)
        return x

    for rows in ROWS:
        used = weights[: count // 4] if rows >= MANY_ROWS else weights
        x = _numbers((rows, WIDTH), dtype)
        yield Timed("project", rows, 2 * rows * WIDTH * WIDTH * len(used), once, x, used)


def experts_runs(ops: Ops, dtype: str) -> Iterator[Timed]:
    """A layer of experts, each of which computes as many rows."""
    shapes = ((EXPERT_WIDTH, WIDTH), (EXPERT_WIDTH, WIDTH), (WIDTH, EXPERT_WIDTH))
    values = []
    for shape in shapes:
        matrices = [_numbers(shape, dtype, shape[1])[None] for _ in range(EXPERTS)]
        if ops.layout == "stacked":
            matrices = [jnp.concatenate(matrices)]
        parts = tuple(_stored_weight(ops, matrix) for matrix in matrices)
        values.append(parts[0] if ops.layout == "stacked" else Separate(parts=parts))
    experts = Expert(*values)

    def once(x: Array, arguments: tuple[Any, Routing]) -> Array:
        return ops.experts(arguments[0], x, arguments[1]).astype(x.dtype)

    for rows in ROWS:
        ids = jnp.arange(EXPERTS * rows, dtype=jnp.int32)[:, None] % EXPERTS
        routing = Routing(ids, jnp.ones(ids.shape, jnp.float32))
        x = _numbers((EXPERTS * rows, WIDTH), dtype)
        yield Timed("experts", rows, 6 * EXPERTS * rows * WIDTH * EXPERT_WIDTH, once, x, (experts, routing))


def attend_runs(ops: Ops, dtype: str) -> Iterator[Timed]:
    """Attention of one query per sequence to a full cache, and of a whole prompt to itself, by query heads of a
    key/value head.
    """

    def once(q: Array, cached: tuple[LayerCache, Array]) -> Array:
        cache, starts = cached
        return ops.attend(q, cache.keys(), cache.values(), starts, AttentionPolicy()).astype(q.dtype)

    operations: tuple[tuple[Operation, int, int], ...] = (("attend_step", SLOTS, 1), ("attend_prompt", PROMPT, PROMPT))
    for operation, slots, queries in operations:
        each = 2 * KEY_HEADS * slots * HEAD_WIDTH * jnp.dtype(dtype).itemsize
        batch = max(1, BYTES // each) if queries == 1 else 1
        shape = (batch, KEY_HEADS, slots, HEAD_WIDTH)
        k, v = (copied(_stored(_numbers(shape, dtype))) for _ in range(2))
        cached = LayerCache(k=k, v=v, dtype=dtype), jnp.full((batch,), slots - queries, jnp.int32)
        seen = slots if queries == 1 else (slots + 1) / 2
        for group in GROUPS:
            q = _numbers((batch, KEY_HEADS, group, queries, HEAD_WIDTH), dtype)
            yield Timed(operation, group, 4 * q.size * seen, once, q, cached)


def _stored_weight(ops: Ops, numbers: Array) -> Stored:
    """A weight as a model holds it."""
    return ops.storage.of(numbers).per_array(lambda array, _: copied(array))


def _stored(x: Array) -> Array:
    """As a cache holds it."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


@partial(jax.jit, static_argnums=(0, 1, 2))
def _numbers(shape: tuple[int, ...], dtype: str, fan_in: int = 1) -> Array:
    """Of mean 0, as large as keeps products with them as large; making random ones would take longer than measuring."""
    return (jnp.cos(jnp.arange(math.prod(shape), dtype=jnp.float32)) * (2 / fan_in) ** 0.5).reshape(shape).astype(dtype)
