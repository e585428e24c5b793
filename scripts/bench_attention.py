"""Times the kernels of a layer that are no experts: attention, rotary embeddings, products of few rows, norms.

The third part of `scripts.bench_kernels`: each beside XLA's way, its result checked first, at the sizes of a model.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from moejax.ops import reference
from moejax.ops.triton.kernels import Kernels
from moejax.ops.xla.attend import attend as xla_attend
from moejax.ops.xla.rotate import rotate_into_cache
from scripts.kernel_timing import Cost, KernelReport, TimingPlan, compiled, difference, normal, seconds

ITEM = 2  # bytes of a bfloat16
LONG = 1e10  # FLOPs of a call that takes longer than asking for it


class TimedCall(NamedTuple):
    """One call: of ours and of XLA, on the same arguments, and what it has to move and compute at least."""

    name: str
    tokens: int
    ours: Callable[..., Any]
    xla: Callable[..., Any]
    args: tuple[Any, ...]
    cost: Cost


def attention_rows(plan: TimingPlan, implementation: Kernels, report: KernelReport) -> None:
    """A row for each kernel and size. `calls` independent ones in a program: one is shorter than asking for it."""
    for timed in (*attention(plan, implementation), *products(plan, implementation), *rows(plan, implementation)):
        calls = 2 if timed.cost.flops > LONG else plan.route_calls
        several = [tuple(jnp.array(arg) if isinstance(arg, Array) else arg for arg in timed.args) for _ in range(calls)]
        error = difference(jax.jit(timed.ours)(*timed.args), jax.jit(timed.xla)(*timed.args))
        took, beside = (
            seconds(compiled(lambda many, one=one: [one(*args) for args in many], several), plan.rounds) / calls
            for one in (timed.ours, timed.xla)
        )
        report.row(timed.name, timed.tokens, took, timed.cost, beside, error)


def attention(plan: TimingPlan, implementation: Kernels) -> Iterator[TimedCall]:
    """One query for each sequence, and prompts, over a cache that is full up to them."""
    config, policy = plan.config, plan.config.attention
    kv, width, group = config.num_kv_heads, config.head_dim, config.num_heads // config.num_kv_heads
    for batch, queries in (*((batch, 1) for batch in plan.batches), (1, plan.positions)):
        q = normal(batch * kv * group, queries, width).reshape(batch, kv, group, queries, width)
        k, v = (normal(batch * kv, plan.positions, width, seed=seed).reshape(batch, kv, -1, width) for seed in (1, 2))
        starts = jnp.full((batch,), plan.positions - queries, jnp.int32)
        seen = plan.positions - (queries - 1) / 2  # on average, by each query
        heads = batch * config.num_heads
        moved = ITEM * (2 * k.size + 2 * q.size)
        yield TimedCall(
            "attend" if queries == 1 else "attend, a prompt",
            batch * queries,
            lambda q, k, v, starts: implementation.attend(q, k, v, starts, policy),
            lambda q, k, v, starts: xla_attend(q, k, v, starts, policy).astype(q.dtype),
            (q, k, v, starts),
            Cost(moved, 4 * heads * queries * seen * width),
        )


def products(plan: TimingPlan, implementation: Kernels) -> Iterator[TimedCall]:
    """Queries, keys and values of few rows in one call, and the head."""
    config = plan.config
    d, h = config.embed_dim, config.head_dim
    for name, outputs in (
        ("project, q k v", (config.num_heads * h, config.num_kv_heads * h, config.num_kv_heads * h)),
        ("project, head", (config.vocab_size,)),
    ):
        weights = [normal(1, size, d, seed=place)[0] for place, size in enumerate(outputs)]
        for tokens in (plan.few[0], plan.few[-1]):
            x = normal(tokens, d)
            moved = ITEM * (sum(w.size for w in weights) + x.size) + 4 * tokens * sum(outputs)
            yield TimedCall(
                name,
                tokens,
                implementation.project,
                reference.project,
                (x, *weights),
                Cost(moved, 2 * tokens * d * sum(outputs)),
            )


def rows(plan: TimingPlan, implementation: Kernels) -> Iterator[TimedCall]:
    """The sum and norm of rows, and rotary embeddings into a cache."""
    config = plan.config
    d, h, n, kv = config.embed_dim, config.head_dim, config.num_heads, config.num_kv_heads
    scale = normal(d)
    for tokens in (plan.few[0], plan.few[-1], plan.many[-1]):
        x, added = normal(tokens, d), normal(tokens, d, seed=1)
        yield TimedCall(
            "add_norm",
            tokens,
            lambda x, added, scale: implementation.add_norm(x, added, scale, eps=1e-5),
            lambda x, added, scale: reference.add_norm(x, added, scale, eps=1e-5),
            (x, added, scale),
            Cost(ITEM * 4 * x.size, 0),
        )
    batch = plan.batches[-1]
    q, k, v = (normal(batch, size * h, dtype="float32").reshape(batch, 1, size, h) for size in (n, kv, kv))
    cos, sin = (normal(batch, h // 2, seed=seed, dtype="float32")[:, None] for seed in (3, 4))
    slots = 2  # a few: nothing is donated here, so that XLA copies the caches before they are written
    caches = [jnp.zeros((batch, kv, slots, h), jnp.uint16) for _ in range(2)]
    starts = jnp.ones((batch,), jnp.int32)

    def written(rotate: Callable[..., Any]) -> Callable[..., Any]:
        """The queries, and what was written."""

        def run(*args: Any) -> Any:
            q, *after = rotate(*args, "bfloat16")
            return q, [jax.lax.bitcast_convert_type(one[:, :, 1], jnp.bfloat16) for one in after]

        return run

    moved = 4 * (q.size + 2 * k.size) + ITEM * (q.size + 2 * k.size)
    yield TimedCall(
        "rotate_into_cache",
        batch,
        written(implementation.rotate),
        written(rotate_into_cache),
        (q, k, v, cos, sin, starts, *caches),
        Cost(moved, 0),
    )
