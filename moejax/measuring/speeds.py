"""Measures how fast this machine runs the engine's own operations, by how many rows share what they read.

Everything that is read is larger than caches, as a model's weights and cache are. On a CPU weights are in huge pages,
and caches in plain memory, as a model's are.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from moejax.model.cache import LayerCache
from moejax.ops.expert import Expert
from moejax.ops.routing import Routing
from moejax.ops.table import Ops, make_ops, prepare_backend
from moejax.planning.hardware import Curve, Operation
from moejax.runtime.huge_pages import copied
from moejax.weights.layouts import Separate
from moejax.weights.storage import Stored

RUNS = 5  # the shortest counts, since whatever else ran could only make it longer
ENOUGH_SECONDS = 0.02  # that a run should take, so that starting it does not count
ROWS = (1, 2, 4, 8, 16, 32, 64, 256)
GROUPS = (1, 2, 4, 8)  # query heads of a key/value head
BYTES = 2**27  # of weights of products, and of a cache: more than what caches keep from one pass to the next
MANY_ROWS = 64  # from here on products are bound by arithmetic, and a quarter of the weights is enough
WIDTH, EXPERT_WIDTH, EXPERTS = 1024, 2048, 8
KEY_HEADS, HEAD_WIDTH, SLOTS, PROMPT = 8, 128, 2048, 512


def engine_operations() -> Ops:
    """What the engine computes with on JAX's first device."""
    return make_ops(prepare_backend("auto", jax.default_backend()))


def measure_speeds(dtype: str) -> dict[Operation, Curve]:
    """FLOP per second of every operation, by rows."""
    ops = engine_operations()
    return {
        "project": project_speeds(ops, dtype),
        "experts": experts_speeds(ops, dtype),
        "attend_step": {group: attend_speed(ops, dtype, group, prompt=False) for group in GROUPS},
        "attend_prompt": {group: attend_speed(ops, dtype, group, prompt=True) for group in GROUPS},
    }


def project_speeds(ops: Ops, dtype: str) -> Curve:
    """Products with square weights, one after the other."""
    count = BYTES // (WIDTH * WIDTH * jnp.dtype(dtype).itemsize)
    weights = [_stored_weight(ops, _numbers((WIDTH, WIDTH), dtype, WIDTH)) for _ in range(count)]

    def once(x: Array, weights: list[Stored]) -> Array:
        for w in weights:
            (y,) = ops.project(x, w)
            x = y.astype(x.dtype)
        return x

    speeds = {}
    for rows in ROWS:
        used = weights[: count // 4] if rows >= MANY_ROWS else weights
        seconds = _seconds(once, _numbers((rows, WIDTH), dtype), used)
        speeds[rows] = _rounded(2 * rows * WIDTH * WIDTH * len(used) / seconds)
    return speeds


def experts_speeds(ops: Ops, dtype: str) -> Curve:
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

    speeds = {}
    for rows in ROWS:
        ids = jnp.arange(EXPERTS * rows, dtype=jnp.int32)[:, None] % EXPERTS
        routing = Routing(ids, jnp.ones(ids.shape, jnp.float32))
        seconds = _seconds(once, _numbers((EXPERTS * rows, WIDTH), dtype), (experts, routing))
        speeds[rows] = _rounded(6 * EXPERTS * rows * WIDTH * EXPERT_WIDTH / seconds)
    return speeds


def attend_speed(ops: Ops, dtype: str, group: int, *, prompt: bool) -> float:
    """Attention of one query per sequence to a full cache, or of a whole prompt to itself."""
    slots, queries = (PROMPT, PROMPT) if prompt else (SLOTS, 1)
    each = 2 * KEY_HEADS * slots * HEAD_WIDTH * jnp.dtype(dtype).itemsize
    batch = 1 if prompt else max(1, BYTES // each)
    k, v = (_stored(_numbers((batch, KEY_HEADS, slots, HEAD_WIDTH), dtype)) for _ in range(2))
    starts = jnp.full((batch,), slots - queries, jnp.int32)

    def once(q: Array, cached: tuple[LayerCache, Array]) -> Array:
        cache, starts = cached
        return ops.attend(q, cache.keys(), cache.values(), starts, None).astype(q.dtype)

    q = _numbers((batch, KEY_HEADS, group, queries, HEAD_WIDTH), dtype)
    seen = (slots + 1) / 2 if prompt else slots
    return _rounded(4 * q.size * seen / _seconds(once, q, (LayerCache(k=k, v=v, dtype=dtype), starts)))


def _stored_weight(ops: Ops, numbers: Array) -> Stored:
    """A weight as a model holds it."""
    return ops.storage.of(numbers).per_array(lambda array, _: copied(array))


def _rounded(speed: float) -> float:
    """To four digits: more differ from run to run."""
    return float(f"{speed:.4g}")


def _stored(x: Array) -> Array:
    """As a cache holds it."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


@partial(jax.jit, static_argnums=(0, 1, 2))
def _numbers(shape: tuple[int, ...], dtype: str, fan_in: int = 1) -> Array:
    """Of mean 0, as large as keeps products with them as large; making random ones would take longer than measuring."""
    return (jnp.cos(jnp.arange(math.prod(shape), dtype=jnp.float32)) * (2 / fan_in) ** 0.5).reshape(shape).astype(dtype)


def _seconds(once: Callable[[Array, Any], Array], x: Array, arguments: Any) -> float:
    """Seconds of `once(x, arguments)`, whose result it is given next time, in a loop on the device."""

    @jax.jit
    def loop(times: Array, x: Array, arguments: Any) -> Array:
        return lax.fori_loop(0, times, lambda _, x: once(x, arguments), x)

    times = 1
    while True:
        seconds = []
        for _ in range(RUNS):
            began = time.perf_counter()
            jax.block_until_ready(loop(jnp.int32(times), x, arguments))
            seconds.append(time.perf_counter() - began)
        if (shortest := min(seconds)) >= ENOUGH_SECONDS:
            return shortest / times
        times *= 2 if shortest > ENOUGH_SECONDS / 4 else 8
