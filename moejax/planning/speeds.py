"""Measures how fast this machine runs the engine's own operations, by how many rows share what they read.

Everything that is read is larger than caches, as a model's weights and cache are.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from moejax.moe import resolve_backend
from moejax.moe.experts import BACKENDS, ExpertBackend
from moejax.moe.router import Routing
from moejax.moe.weights import Expert
from moejax.planning.hardware import Curve, Operation

RUNS = 5  # the shortest counts, since whatever else ran could only make it longer
ENOUGH_SECONDS = 0.02  # that a run should take, so that starting it does not count
ROWS = (1, 2, 4, 8, 16, 32, 64, 256)
GROUPS = (1, 2, 4, 8)  # query heads of a key/value head
BYTES = 2**27  # of weights of products, and of a cache: more than what caches keep from one pass to the next
MANY_ROWS = 64  # from here on products are bound by arithmetic, and a quarter of the weights is enough
WIDTH, EXPERT_WIDTH, EXPERTS = 1024, 2048, 8
KEY_HEADS, HEAD_WIDTH, SLOTS, PROMPT = 8, 128, 2048, 512


def engine_operations() -> ExpertBackend:
    """What the engine computes with on JAX's first device."""
    return BACKENDS[resolve_backend("auto", jax.default_backend())]


def measure_speeds(dtype: str) -> dict[Operation, Curve]:
    """FLOP per second of every operation, by rows."""
    backend = engine_operations()
    return {
        "project": {rows: project_speed(backend, dtype, rows) for rows in ROWS},
        "experts": {rows: experts_speed(backend, dtype, rows) for rows in ROWS},
        "attend_step": {group: attend_speed(backend, dtype, group, prompt=False) for group in GROUPS},
        "attend_prompt": {group: attend_speed(backend, dtype, group, prompt=True) for group in GROUPS},
    }


def project_speed(backend: ExpertBackend, dtype: str, rows: int) -> float:
    """Products of `rows` rows with square weights, one after the other."""
    each = WIDTH * WIDTH * jnp.dtype(dtype).itemsize
    count = max(1, BYTES // each // (4 if rows >= MANY_ROWS else 1))
    weights = [_random(number, (WIDTH, WIDTH), dtype, WIDTH) for number in range(count)]

    def once(x: Array, weights: list[Array]) -> Array:
        for w in weights:
            (y,) = backend.operations.project(x, w)
            x = y.astype(x.dtype)
        return x

    x = _random(count, (rows, WIDTH), dtype, 1)
    return 2 * rows * WIDTH * WIDTH * count / _seconds(once, x, weights)


def experts_speed(backend: ExpertBackend, dtype: str, rows: int) -> float:
    """A layer of experts, each of which computes `rows` rows."""
    shapes = ((EXPERT_WIDTH, WIDTH), (EXPERT_WIDTH, WIDTH), (WIDTH, EXPERT_WIDTH))

    def expert(number: int) -> Expert:
        return Expert(*(_random(3 * number + i, shape, dtype, shape[1]) for i, shape in enumerate(shapes)))

    experts: Any = [expert(number) for number in range(EXPERTS)]
    if backend.layout == "stacked":
        experts = jax.tree.map(lambda *matrices: jnp.stack(matrices), *experts)
    ids = jnp.arange(EXPERTS * rows, dtype=jnp.int32)[:, None] % EXPERTS
    routing = Routing(ids, jnp.ones(ids.shape, jnp.float32))

    def once(x: Array, arguments: tuple[Any, Routing]) -> Array:
        return backend.apply(arguments[0], x, arguments[1]).astype(x.dtype)

    x = _random(3 * EXPERTS, (EXPERTS * rows, WIDTH), dtype, 1)
    return 6 * EXPERTS * rows * WIDTH * EXPERT_WIDTH / _seconds(once, x, (experts, routing))


def attend_speed(backend: ExpertBackend, dtype: str, group: int, *, prompt: bool) -> float:
    """Attention of one query per sequence to a full cache, or of a whole prompt to itself."""
    slots, queries = (PROMPT, PROMPT) if prompt else (SLOTS, 1)
    each = 2 * KEY_HEADS * slots * HEAD_WIDTH * jnp.dtype(dtype).itemsize
    batch = 1 if prompt else max(1, BYTES // each)
    k, v = (_random(number, (batch, KEY_HEADS, slots, HEAD_WIDTH), dtype, 1) for number in (0, 1))
    starts = jnp.full((batch,), slots - queries, jnp.int32)

    def once(q: Array, cached: tuple[Array, Array, Array]) -> Array:
        return backend.operations.attend(q, *cached, None).astype(q.dtype)

    q = _random(2, (batch, KEY_HEADS, group, queries, HEAD_WIDTH), dtype, 1)
    seen = (slots + 1) / 2 if prompt else slots
    return 4 * q.size * seen / _seconds(once, q, (k, v, starts))


def _random(seed: int, shape: tuple[int, ...], dtype: str, fan_in: int) -> Array:
    return (jax.random.normal(jax.random.key(seed), shape, jnp.float32) * fan_in**-0.5).astype(dtype)


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
