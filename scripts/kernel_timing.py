"""What the benchmarks of layers share: shapes, random layers and routing, the device's rates, timing a call, a row."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from moejax.families.config import ModelConfig
from moejax.families.table import named_config
from moejax.ops.expert import Expert
from moejax.ops.reference import route
from moejax.ops.routing import Routing
from moejax.weights.storage import Plain

# Two bfloat16 results of one float32 sum in different order, hidden values rounded in between; outputs are of order 1.
TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class TimingPlan:
    """What is run. layers: with weights of their own, so that no cache keeps them from one call to the next.

    few, many: tokens of the kernels for few of them, and of the grouped products.  batches: sequences.  positions: of a
    cache and of a prompt.
    """

    config: ModelConfig
    layers: int
    few: Sequence[int]
    many: Sequence[int]
    batches: Sequence[int]
    positions: int
    rounds: int
    route_calls: int
    copied_bytes: int
    matrix: int


FULL = TimingPlan(
    config=named_config("mixtral-8x7b"),
    layers=4,
    few=(1, 2, 4, 8, 16, 32, 64),
    many=(16, 32, 64, 128, 512, 4096),
    batches=(1, 8, 32),
    positions=4096,
    rounds=20,
    route_calls=16,
    copied_bytes=4 << 30,
    matrix=8192,
)
TINY = TimingPlan(
    config=dataclasses.replace(
        FULL.config, embed_dim=16, expert_dim=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, vocab_size=32
    ),
    layers=1,
    few=(1, 2),
    many=(2,),
    batches=(1,),
    positions=16,
    rounds=1,
    route_calls=1,
    copied_bytes=1 << 10,
    matrix=32,
)


class Rates(NamedTuple):
    """What the device was measured to do: bytes read and written per second, and floating-point operations."""

    bytes: float
    flops: float


class Cost(NamedTuple):
    """What a call has to move and compute, at least."""

    bytes: float
    flops: float


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """Median seconds of a call among calls in a row, which hide the time to ask for them; the first is not counted.

    Rounds of about 50 ms, as many as fit in about a second and a half, at least 3 and at most `rounds`.
    """
    jax.block_until_ready(call())
    began = time.perf_counter()
    jax.block_until_ready(call())
    once = time.perf_counter() - began
    calls = max(1, min(50, int(0.05 / once)))
    times = []
    for _ in range(min(rounds, max(3, int(1.5 / (calls * once))))):
        began = time.perf_counter()
        jax.block_until_ready([call() for _ in range(calls)])
        times.append((time.perf_counter() - began) / calls)
    return statistics.median(times)


def compiled(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    program = jax.jit(function).lower(*args).compile()
    return lambda: program(*args)


def normal(*shape: int, seed: int = 0, dtype: str = "bfloat16") -> Array:
    """Normal numbers made on the device; matrices keep the scale of what they multiply."""
    scale = shape[-1] ** -0.5 if len(shape) == 3 else 1.0
    make = jax.jit(lambda key: (jax.random.normal(key, shape, jnp.float32) * scale).astype(dtype))
    return make(jax.random.key(seed, impl="rbg"))


def random_routing(config: ModelConfig, tokens: int) -> Routing:
    """Experts of each token, all equally likely."""
    logits = normal(tokens, config.num_experts, dtype="float32")
    return route(logits, jnp.ones((tokens,), bool), config.router)


def random_layers(config: ModelConfig, layers: int) -> list[Expert]:
    """Stacked experts, each layer with weights of its own, so that no cache keeps them from one call to the next."""
    e, f, d = config.num_experts, config.expert_dim, config.embed_dim
    return [
        Expert(*(Plain.of(normal(e, *shape, seed=3 * i + j)) for j, shape in enumerate(((f, d), (f, d), (d, f)))))
        for i in range(layers)
    ]


def walk(one_layer: Callable[[Expert, Array, Routing], Array]) -> Callable[..., Array]:
    """One layer after the other, as a model has them."""

    def layers(experts: list[Expert], x: Array, routing: Routing) -> Array:
        for expert in experts:
            x = x + one_layer(expert, x, routing).astype(x.dtype)
        return x

    return layers


def measure_rates(plan: TimingPlan) -> Rates:
    x = jnp.ones((plan.copied_bytes // 2,), jnp.bfloat16)
    copy = seconds(compiled(lambda x: x + jnp.ones((), x.dtype), x), plan.rounds)
    a, b = normal(plan.matrix, plan.matrix), normal(plan.matrix, plan.matrix, seed=1)
    product = seconds(compiled(lambda a, b: a @ b, a, b), plan.rounds)
    return Rates(2 * plan.copied_bytes / copy, 2 * plan.matrix**3 / product)


@dataclass(kw_only=True)
class KernelReport:
    """What was timed on a device of these rates: printed as it comes, and kept.

    rows: for each kernel its name, tokens, seconds, the cost, seconds of XLA's way or None, and the largest error.
    """

    rates: Rates
    rows: list[dict[str, Any]] = field(default_factory=list)

    HEADER = (
        "| kernel | tokens | ms | GB | GFLOP | of copy rate | of matrix rate | XLA ms | max error |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )

    def row(self, name: str, tokens: int, took: float, cost: Cost, xla: float | None, error: float) -> None:
        """Prints and keeps a row.

        Raises:
            SystemExit: for a result that is wrong.
        """
        of_copy, of_matrix = cost.bytes / took / self.rates.bytes, cost.flops / took / self.rates.flops
        beside = "" if xla is None else f"{1e3 * xla:.3f}"
        print(
            f"| {name} | {tokens} | {1e3 * took:.3f} | {cost.bytes / 1e9:.3f} | {cost.flops / 1e9:.1f} | {of_copy:.0%} "
            f"| {of_matrix:.0%} | {beside} | {error:.1e} |",
            flush=True,
        )
        if not error <= TOLERANCE:
            raise SystemExit(f"{name} at {tokens} tokens is wrong: error {error}, at most {TOLERANCE} expected")
        self.rows.append(
            {"kernel": name, "tokens": tokens, "seconds": took, **cost._asdict(), "xla_seconds": xla, "error": error}
        )


def difference(got: Any, expected: Any) -> float:
    """Largest absolute difference of two trees of arrays; NaN where one has it."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max(float(jnp.max(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)))) for a, b in pairs)
