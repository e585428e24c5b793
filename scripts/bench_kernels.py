"""Times the GPU kernels, and a whole decode step with them, against what the same GPU does at its best.

    python scripts/bench_kernels.py

First the device's copy bandwidth and bfloat16 matrix rate. Then every kernel at the shapes of Mixtral 8x7B, its result
checked before its time is taken: median milliseconds, bytes and floating-point operations counted from the routing, the
fraction of the measured rate that bounds it, and XLA's way beside it; and from how many tokens on the grouped products
are faster, which is what to set `MOST_TOKENS` by. Then decode steps of the whole model with random weights made on the
device: tokens per second, and bytes read per second as a fraction of the measured and of the datasheet's.

Needs a GPU of compute capability 8.0 or more, and one of 141 GB for the whole model (`--no-model` leaves it out);
planned for 8 minutes on a Hopper. `--tiny` walks the same way through small shapes on any device, interpreted: for
tests, its times mean nothing.
"""

import argparse
import dataclasses
import datetime
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# The model takes 93 GB of 141: more than the three quarters that JAX reserves by default.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moejax.config import ModelConfig, named_config
from moejax.decoding import steps
from moejax.decoding.buckets import STEPS_PER_CALL
from moejax.decoding.state import DecodeState, Features, empty_state
from moejax.kernels import KERNELS, Kernels, block_layout, kernels
from moejax.kernels.triton.blocks import grouped_rows
from moejax.kernels.triton.few_tokens import MOST_TOKENS
from moejax.loading import make_parallel
from moejax.model import Mixtral
from moejax.moe import BACKENDS, Routing
from moejax.moe.permutation import sort_by_expert
from moejax.moe.router import route
from moejax.moe.weights import Expert
from moejax.parallel import Parallel
from moejax.params import ParamTree, merge, random_params, split
from moejax.platform import current_device
from sharding import MeshConfig

# Memory bandwidth by the vendor's datasheet, TB/s, by a part of the device's name.
DATASHEET = {"H200": 4.8, "H100 PCIe": 2.0, "H100 NVL": 3.9, "H100": 3.35, "A100-SXM4-80GB": 2.0, "A100": 1.55}
# Two bfloat16 results of one float32 sum in different order, hidden values rounded in between; outputs are of order 1.
TOLERANCE = 0.05
CACHE_LENGTH = 1024  # slots; a step reads them all
STEPPED = 5  # calls of the decode loop, the first of which compiles


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run. layers: with weights of their own, so that no cache keeps them from one call to the next."""

    config: ModelConfig
    layers: int
    few: Sequence[int]
    many: Sequence[int]
    batches: Sequence[int]
    rounds: int
    route_calls: int
    copied_bytes: int
    matrix: int


FULL = Plan(
    config=named_config("mixtral-8x7b"),
    layers=4,
    few=(1, 2, 4, 8, 16, 32, 64),
    many=(16, 32, 64, 128, 512, 4096),
    batches=(1, 8, 32),
    rounds=20,
    route_calls=16,
    copied_bytes=4 << 30,
    matrix=8192,
)
TINY = Plan(
    config=dataclasses.replace(
        FULL.config, embed_dim=16, expert_dim=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, vocab_size=32
    ),
    layers=1,
    few=(1, 2),
    many=(2,),
    batches=(1,),
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


def main() -> None:
    args, began = parse_args(), time.perf_counter()
    plan = TINY if args.tiny else FULL
    device = current_device()
    try:
        implementation = kernels("interpret" if args.tiny else "triton")
    except NotImplementedError as reason:
        raise SystemExit(f"{reason}; --tiny walks through small shapes on any device") from None
    print(f"{device.kind}, jax {jax.__version__}, {datetime.date.today()}" + (", interpreted: no times" * args.tiny))
    rates = measure_rates(plan)
    print(f"copy {rates.bytes / 1e12:.2f} TB/s read and written, bfloat16 product {rates.flops / 1e12:.0f} TFLOP/s\n")
    print("| kernel | tokens | ms | GB | GFLOP | of copy rate | of matrix rate | XLA ms | max error |")
    print("|---|---|---|---|---|---|---|---|---|")
    route_rows(plan, implementation, rates)
    few = few_rows(plan, implementation, rates)
    many = many_rows(plan, implementation, rates)
    if KERNELS["tokamax"].cannot(device) is None:
        many_rows(plan, KERNELS["tokamax"], rates, suffix=", tokamax")
    if not args.no_model:
        decode_rows(plan, rates)
    print(f"\n{crossover(few, many)}\n{time.perf_counter() - began:.0f} s in all")


def crossover(few: dict[int, float], many: dict[int, float]) -> str:
    """What the times of both product kernels by tokens say of the boundary between them, and what to do."""
    both = sorted(few.keys() & many.keys())
    ahead = next((tokens for tokens in both if few[tokens] > many[tokens]), None)
    if ahead is None:
        return f"crossover: expert_ffn is the faster one up to {both[-1]} tokens; keep MOST_TOKENS = {MOST_TOKENS}"
    below = max((tokens for tokens in few if tokens < ahead), default=1)
    return (
        f"crossover: the grouped products are the faster ones from {ahead} tokens on; set MOST_TOKENS = {below} in "
        f"moejax/kernels/triton/few_tokens.py (it is {MOST_TOKENS})"
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes, interpreted, on any device")
    parser.add_argument("--no-model", action="store_true", help="leave out the decode step of the whole model")
    return parser.parse_args()


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


def measure_rates(plan: Plan) -> Rates:
    x = jnp.ones((plan.copied_bytes // 2,), jnp.bfloat16)
    copy = seconds(compiled(lambda x: x + jnp.ones((), x.dtype), x), plan.rounds)
    a, b = normal(plan.matrix, plan.matrix), normal(plan.matrix, plan.matrix, seed=1)
    product = seconds(compiled(lambda a, b: a @ b, a, b), plan.rounds)
    return Rates(2 * plan.copied_bytes / copy, 2 * plan.matrix**3 / product)


def print_row(name: str, tokens: int, took: float, cost: Cost, rates: Rates, xla: float | None, error: float) -> None:
    of_copy, of_matrix = cost.bytes / took / rates.bytes, cost.flops / took / rates.flops
    beside = "" if xla is None else f"{1e3 * xla:.3f}"
    print(
        f"| {name} | {tokens} | {1e3 * took:.3f} | {cost.bytes / 1e9:.3f} | {cost.flops / 1e9:.1f} | {of_copy:.0%} "
        f"| {of_matrix:.0%} | {beside} | {error:.1e} |",
        flush=True,
    )
    if not error <= TOLERANCE:
        raise SystemExit(f"{name} at {tokens} tokens is wrong: error {error}, at most {TOLERANCE} expected")


def difference(got: Any, expected: Any) -> float:
    """Largest absolute difference of two trees of arrays; NaN where one has it."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max(float(jnp.max(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)))) for a, b in pairs)


def random_routing(plan: Plan, tokens: int, seed: int = 0) -> Routing:
    logits = normal(tokens, plan.config.num_experts, seed=seed, dtype="float32")
    return route(logits, jnp.ones((tokens,), bool), plan.config.experts_per_token)


def random_layers(plan: Plan) -> list[Expert]:
    e, f, d = plan.config.num_experts, plan.config.expert_dim, plan.config.embed_dim
    return [
        Expert(normal(e, f, d, seed=3 * i), normal(e, f, d, seed=3 * i + 1), normal(e, d, f, seed=3 * i + 2))
        for i in range(plan.layers)
    ]


def walk(one_layer: Callable[[Expert, Array, Routing], Array]) -> Callable[..., Array]:
    """One layer after the other, as a model has them."""

    def layers(experts: list[Expert], x: Array, routing: Routing) -> Array:
        for expert in experts:
            x = x + one_layer(expert, x, routing).astype(x.dtype)
        return x

    return layers


def layer_cost(plan: Plan, routing: Routing) -> Cost:
    """Chosen experts' weights once, tokens in, float32 sums out; two operations per weight and row."""
    config, (tokens, a) = plan.config, routing.experts.shape
    matrices = 3 * config.expert_dim * config.embed_dim
    chosen = len(np.unique(np.asarray(routing.experts)))
    return Cost(2 * chosen * matrices + 6 * tokens * config.embed_dim, 2 * tokens * a * matrices)


def route_rows(plan: Plan, implementation: Kernels, rates: Rates) -> None:
    """Many independent calls in one program: one call is shorter than the time to ask for it."""
    e, a, calls = plan.config.num_experts, plan.config.experts_per_token, plan.route_calls
    for tokens in (plan.few[0], plan.few[-1], plan.many[-1]):
        # Rounded, so that two experts are equal or clearly apart and every way of computing exp chooses the same.
        logits = [normal(tokens, e, seed=i).astype(jnp.float32) for i in range(calls)]
        valid = jnp.ones((tokens,), bool)
        ours = compiled(lambda logits, valid: [implementation.route(one, valid, a) for one in logits], logits, valid)

        def xla(logits: list[Array], valid: Array) -> list[Any]:
            return [(routing := route(one, valid, a), sort_by_expert(routing, e)) for one in logits]

        expected = [KERNELS["reference"].route(one, valid, a) for one in logits]
        error = difference(ours(), expected)
        took, beside = (seconds(call, plan.rounds) / calls for call in (ours, compiled(xla, logits, valid)))
        print_row("route", tokens, took, Cost(tokens * (4 * e + 12 * a), 0), rates, beside, error)


def few_rows(plan: Plan, implementation: Kernels, rates: Rates) -> dict[int, float]:
    """Seconds per layer, by tokens."""
    experts, times = random_layers(plan), {}

    def ours(expert: Expert, x: Array, routing: Routing) -> Array:
        return implementation.expert_ffn(*expert, x, routing.experts, routing.weights)

    for tokens in plan.few:
        routing, x = random_routing(plan, tokens), normal(tokens, plan.config.embed_dim)
        error = difference(
            jax.jit(ours)(experts[0], x, routing),
            jax.jit(KERNELS["reference"].expert_ffn)(*experts[0], x, routing.experts, routing.weights),
        )
        took, beside = (
            seconds(compiled(walk(apply), experts, x, routing), plan.rounds) / plan.layers
            for apply in (ours, BACKENDS["dense"].apply)
        )
        print_row("expert_ffn", tokens, took, layer_cost(plan, routing), rates, beside, error)
        times[tokens] = took
    return times


def many_rows(plan: Plan, implementation: Kernels, rates: Rates, suffix: str = "") -> dict[int, float]:
    """All of the prefill path, and its two products alone. Returns seconds per layer of the path, by tokens."""
    experts, config, times = random_layers(plan), plan.config, {}
    e = config.num_experts

    def ours(expert: Expert, x: Array, routing: Routing) -> Array:
        ranks, counts = implementation.rank_rows(routing.experts, e)
        layout = block_layout(routing.experts, ranks, counts, grouped_rows(routing.experts.size // e))
        height = grouped_rows(routing.experts.size // e)
        rows = implementation.permute(x, layout.places, height * layout.block_experts.shape[0])
        hidden = implementation.grouped_gate_up(rows, expert.gate, expert.up, layout.block_experts)
        results = implementation.grouped_matmul(hidden, expert.down, layout.block_experts)
        return implementation.combine(results[None], layout.places, routing.weights)

    for tokens in plan.many:
        routing, x = random_routing(plan, tokens), normal(tokens, config.embed_dim)
        error = difference(
            jax.jit(ours)(experts[0], x, routing), jax.jit(BACKENDS["dense"].apply)(experts[0], x, routing)
        )
        took, beside = (
            seconds(compiled(walk(apply), experts, x, routing), plan.rounds) / plan.layers
            for apply in (ours, BACKENDS["ragged"].apply)
        )
        print_row("grouped layer" + suffix, tokens, took, layer_cost(plan, routing), rates, beside, error)
        times[tokens] = took

    tokens = plan.many[-1]
    height = grouped_rows(tokens * config.experts_per_token // e)
    per_expert = max(1, tokens * config.experts_per_token // e // height)  # full blocks: the product alone
    block_experts = jnp.repeat(jnp.arange(e, dtype=jnp.int32), per_expert)
    places = height * e * per_expert
    for name, width, weights in (
        ("grouped_gate_up", config.embed_dim, experts[0][:2]),
        ("grouped_matmul", config.expert_dim, experts[0][2:]),
    ):
        rows = normal(places, width)
        kernel, reference = getattr(implementation, name), getattr(KERNELS["reference"], name)
        error = difference(
            jax.jit(kernel)(rows, *weights, block_experts), jax.jit(reference)(rows, *weights, block_experts)
        )
        took = seconds(compiled(kernel, rows, *weights, block_experts), plan.rounds)
        result = jax.eval_shape(kernel, rows, *weights, block_experts)
        moved = sum(array.nbytes for array in (rows, *weights)) + result.size * result.dtype.itemsize
        cost = Cost(moved, 2 * places * weights[0][0].size * len(weights))
        print_row(name + suffix, places // config.experts_per_token, took, cost, rates, None, error)
    return times


def decode_rows(plan: Plan, rates: Rates) -> None:
    """Steps of the compiled decode loop; the bytes are those of the weights and caches that a step has to read."""
    parallel = make_parallel(plan.config, MeshConfig().build(), "replicated")
    graphdef, declared = split(Mixtral(plan.config, "pallas", parallel, dtype=jnp.bfloat16))
    params = random_params(declared, plan.config.num_experts, 0, lambda path: parallel.sharding())
    total = sum(leaf.nbytes for leaf in params.values())
    print(f"\nwhole model, {total / 1e9:.1f} GB of random weights\n")
    print("| batch | tokens/s | ms a step | GB a step | of copy rate | of datasheet |")
    print("|---|---|---|---|---|---|")

    def generate(params: ParamTree, state: DecodeState, cancelled: Array, count: Array) -> Any:
        return steps.generate(merge(graphdef, declared, params), Features(experts=True), state, cancelled, count)

    program = jax.jit(generate, donate_argnums=1)
    for batch in plan.batches:
        took, experts = step_seconds(plan.config, parallel, program, params, batch)
        read = step_bytes(plan.config, params, batch, experts)
        kind = current_device().kind
        sheet = next((rate for part, rate in DATASHEET.items() if part in kind), None)
        print(
            f"| {batch} | {batch / took:.1f} | {1e3 * took:.3f} | {read / 1e9:.2f} | {read / took / rates.bytes:.0%} | "
            + ("unknown |" if sheet is None else f"{read / took / sheet / 1e12:.0%} |"),
            flush=True,
        )


def step_seconds(
    config: ModelConfig, parallel: Parallel, program: Callable[..., Any], params: ParamTree, batch: int
) -> tuple[float, np.ndarray]:
    """Median seconds of a step, and the experts that the last call's tokens chose [steps, B, L, A]."""
    # Made by one program, so that every array has a buffer of its own to donate.
    state = jax.jit(lambda: ready_state(config, parallel, batch))()
    cancelled, count = jnp.zeros((batch,), bool), jnp.int32(STEPS_PER_CALL)
    times, experts = [], np.zeros(0)
    for _ in range(STEPPED):
        began = time.perf_counter()
        state, generated = jax.block_until_ready(program(params, state, cancelled, count))
        times.append((time.perf_counter() - began) / int(generated.taken))
        experts = np.asarray(generated.outputs.experts)
    return statistics.median(times[1:]), experts


def ready_state(config: ModelConfig, parallel: Parallel, batch: int) -> DecodeState:
    """Rows in the middle of a text that does not end within the measured steps."""
    state = empty_state(config, Features(experts=True), batch, CACHE_LENGTH, "bfloat16", parallel)
    return dataclasses.replace(
        state,
        token=jnp.arange(batch, dtype=jnp.int32) % config.vocab_size,
        position=jnp.full((batch,), CACHE_LENGTH // 2, jnp.int32),
        active=jnp.ones((batch,), bool),
        params=dataclasses.replace(state.params, max_tokens=jnp.full((batch,), 1 << 30, jnp.int32)),
    )


def step_bytes(config: ModelConfig, params: ParamTree, batch: int, experts: np.ndarray) -> float:
    """Weights read per step, those of experts by how many different ones each layer's tokens chose, and the cache."""
    chosen = [
        len(np.unique(experts[step, :, layer])) for step in range(len(experts)) for layer in range(experts.shape[2])
    ]
    stacked = sum(leaf.nbytes for path, leaf in params.items() if ".experts." in path)
    others = sum(leaf.nbytes for path, leaf in params.items() if ".experts." not in path and path != "embed.table")
    cache = 4 * config.num_layers * batch * config.num_kv_heads * CACHE_LENGTH * config.head_dim
    return others + cache + stacked * statistics.mean(chosen) / config.num_experts


if __name__ == "__main__":
    main()
