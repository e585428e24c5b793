"""Times the GPU kernels, and a whole decode step with them, against what the same GPU does at its best.

    python -m scripts.bench_kernels

First the device's copy bandwidth and bfloat16 matrix rate. Then every kernel at the shapes of Mixtral 8x7B, its result
checked before its time is taken: median milliseconds, bytes and floating-point operations counted from the routing, the
fraction of the measured rate that bounds it, and XLA's way beside it; attention, rotary embeddings, norms and products
of few rows as well; and from how many tokens on the grouped products
are faster, which is what to set `MOST_TOKENS` by. Then decode steps of the whole model with random weights made on the
device: tokens per second, and bytes read per second as a fraction of the measured and of the datasheet's.

Needs a GPU of compute capability 8.0 or more, and one of 141 GB for the whole model (`--no-model` leaves it out);
planned for 8 minutes on a Hopper. `--tiny` walks the same way through small shapes on any device, interpreted: for
tests, its times mean nothing.
"""

import argparse
import datetime
import json
import os
import time
from pathlib import Path
from typing import Any

# The model takes 93 GB of 141: more than the three quarters that JAX reserves by default.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moejax.ops.expert import Expert
from moejax.ops.reference import route
from moejax.ops.routing import Routing
from moejax.ops.table import BACKENDS
from moejax.ops.triton.block_layout import block_layout
from moejax.ops.triton.blocks import grouped_rows
from moejax.ops.triton.few_tokens import MOST_TOKENS
from moejax.ops.triton.kernels import KERNELS, Kernels, kernels
from moejax.ops.xla.permutation import sort_by_expert
from moejax.runtime.platform import current_device
from scripts.bench_attention import attention_rows
from scripts.bench_decode_step import decode_rows
from scripts.kernel_timing import (
    FULL,
    TINY,
    Cost,
    KernelReport,
    TimingPlan,
    compiled,
    difference,
    measure_rates,
    normal,
    random_layers,
    random_routing,
    seconds,
    walk,
)


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
    report = KernelReport(rates=rates)
    print(f"copy {rates.bytes / 1e12:.2f} TB/s read and written, bfloat16 product {rates.flops / 1e12:.0f} TFLOP/s\n")
    print(KernelReport.HEADER)
    route_rows(plan, implementation, report)
    few = few_rows(plan, implementation, report)
    many = many_rows(plan, implementation, report)
    if KERNELS["tokamax"].cannot(device) is None:
        many_rows(plan, KERNELS["tokamax"], report, suffix=", tokamax")
    attention_rows(plan, implementation, report)
    if not args.no_model:
        decode_rows(plan, rates)
    if args.json:
        found = {"device": device.kind, "jax": jax.__version__, "rates": rates._asdict(), "rows": report.rows}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
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
        f"moejax/ops/triton/few_tokens.py (it is {MOST_TOKENS})"
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes, interpreted, on any device")
    parser.add_argument("--json", type=Path, help="write the rows of kernels there, too")
    parser.add_argument("--no-model", action="store_true", help="leave out the decode step of the whole model")
    return parser.parse_args()


def matrices(expert: Expert) -> tuple[Array, ...]:
    """gate, up and down as arrays."""
    return tuple(value.numbers() for value in expert)


def layer_cost(plan: TimingPlan, routing: Routing) -> Cost:
    """Chosen experts' weights once, tokens in, float32 sums out; two operations per weight and row."""
    config, (tokens, a) = plan.config, routing.experts.shape
    matrices = 3 * config.expert_dim * config.embed_dim
    chosen = len(np.unique(np.asarray(routing.experts)))
    return Cost(2 * chosen * matrices + 6 * tokens * config.embed_dim, 2 * tokens * a * matrices)


def route_rows(plan: TimingPlan, implementation: Kernels, report: KernelReport) -> None:
    """Many independent calls in one program: one call is shorter than the time to ask for it."""
    e, a, calls = plan.config.num_experts, plan.config.router.experts_per_token, plan.route_calls
    policy = plan.config.router
    for tokens in (plan.few[0], plan.few[-1], plan.many[-1]):
        # Rounded, so that two experts are equal or clearly apart and every way of computing exp chooses the same.
        logits = [normal(tokens, e, seed=i).astype(jnp.float32) for i in range(calls)]
        valid = jnp.ones((tokens,), bool)
        ours = compiled(
            lambda logits, valid: [implementation.route(one, valid, policy) for one in logits], logits, valid
        )

        def xla(logits: list[Array], valid: Array) -> list[Any]:
            return [(routing := route(one, valid, policy), sort_by_expert(routing, e)) for one in logits]

        expected = [KERNELS["reference"].route(one, valid, policy) for one in logits]
        error = difference(ours(), expected)
        took, beside = (seconds(call, plan.rounds) / calls for call in (ours, compiled(xla, logits, valid)))
        report.row("route", tokens, took, Cost(tokens * (4 * e + 12 * a), 0), beside, error)


def few_rows(plan: TimingPlan, implementation: Kernels, report: KernelReport) -> dict[int, float]:
    """Seconds per layer, by tokens."""
    experts, times = random_layers(plan.config, plan.layers), {}

    def ours(expert: Expert, x: Array, routing: Routing) -> Array:
        return implementation.expert_ffn(*matrices(expert), x, routing.experts, routing.weights)

    for tokens in plan.few:
        routing, x = random_routing(plan.config, tokens), normal(tokens, plan.config.embed_dim)
        error = difference(
            jax.jit(ours)(experts[0], x, routing),
            jax.jit(KERNELS["reference"].expert_ffn)(*matrices(experts[0]), x, routing.experts, routing.weights),
        )
        took, beside = (
            seconds(compiled(walk(apply), experts, x, routing), plan.rounds) / plan.layers
            for apply in (ours, BACKENDS["dense"].apply)
        )
        report.row("expert_ffn", tokens, took, layer_cost(plan, routing), beside, error)
        times[tokens] = took
    return times


def many_rows(plan: TimingPlan, implementation: Kernels, report: KernelReport, suffix: str = "") -> dict[int, float]:
    """All of the prefill path, and its two products alone. Returns seconds per layer of the path, by tokens."""
    experts, config, times = random_layers(plan.config, plan.layers), plan.config, {}
    e = config.num_experts

    def ours(expert: Expert, x: Array, routing: Routing) -> Array:
        ranks, counts = implementation.rank_rows(routing.experts, e)
        layout = block_layout(routing.experts, ranks, counts, grouped_rows(routing.experts.size // e))
        height = grouped_rows(routing.experts.size // e)
        rows = implementation.permute(x, layout.places, height * layout.block_experts.shape[0])
        hidden = implementation.grouped_gate_up(rows, *matrices(expert)[:2], layout.block_experts)
        results = implementation.grouped_matmul(hidden, matrices(expert)[2], layout.block_experts)
        return implementation.combine(results[None], layout.places, routing.weights)

    for tokens in plan.many:
        routing, x = random_routing(config, tokens), normal(tokens, config.embed_dim)
        error = difference(
            jax.jit(ours)(experts[0], x, routing), jax.jit(BACKENDS["dense"].apply)(experts[0], x, routing)
        )
        took, beside = (
            seconds(compiled(walk(apply), experts, x, routing), plan.rounds) / plan.layers
            for apply in (ours, BACKENDS["ragged"].apply)
        )
        report.row("grouped layer" + suffix, tokens, took, layer_cost(plan, routing), beside, error)
        times[tokens] = took

    tokens = plan.many[-1]
    height = grouped_rows(tokens * config.experts_per_token // e)
    per_expert = max(1, tokens * config.experts_per_token // e // height)  # full blocks: the product alone
    block_experts = jnp.repeat(jnp.arange(e, dtype=jnp.int32), per_expert)
    places = height * e * per_expert
    for name, width, weights in (
        ("grouped_gate_up", config.embed_dim, matrices(experts[0])[:2]),
        ("grouped_matmul", config.expert_dim, matrices(experts[0])[2:]),
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
        report.row(name + suffix, places // config.experts_per_token, took, cost, None, error)
    return times


if __name__ == "__main__":
    main()
