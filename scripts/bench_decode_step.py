"""Decode steps of the whole model on one GPU, with random weights made there: the second half of bench_kernels.py."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moejax._sharding import MeshConfig
from moejax.decoding import steps
from moejax.decoding.state import DecodeState, Features, empty_state
from moejax.families.config import ModelConfig
from moejax.model.structure import PLACEMENT, make_parallel, make_structure
from moejax.moe.parallel import Parallel
from moejax.reading import random_params
from moejax.runtime.buckets import STEPS_PER_CALL
from moejax.runtime.platform import current_device
from moejax.weights.params import ParamTree
from scripts.kernel_timing import Rates, TimingPlan

# Memory bandwidth by the vendor's datasheet, TB/s, by a part of the device's name.
DATASHEET = {"H200": 4.8, "H100 PCIe": 2.0, "H100 NVL": 3.9, "H100": 3.35, "A100-SXM4-80GB": 2.0, "A100": 1.55}
CACHE_LENGTH = 1024  # slots; a step reads them all
STEPPED = 5  # calls of the decode loop, the first of which compiles


def decode_rows(plan: TimingPlan, rates: Rates) -> None:
    """Steps of the compiled decode loop; the bytes are those of the weights and caches that a step has to read."""
    parallel = make_parallel(plan.config, MeshConfig().build(), "replicated")
    structure = make_structure(plan.config, "pallas", "bfloat16", parallel)
    params = random_params(structure, 0)
    total = sum(value.nbytes for path, value in params.items() if path != PLACEMENT)
    print(f"\nwhole model, {total / 1e9:.1f} GB of random weights\n")
    print("| batch | tokens/s | ms a step | GB a step | of copy rate | of datasheet |")
    print("|---|---|---|---|---|---|")

    def generate(params: ParamTree, state: DecodeState, cancelled: Array, count: Array) -> Any:
        return steps.generate(structure.merged(params), Features(experts=True), state, cancelled, count, jnp.int32(0))

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
        sampling=dataclasses.replace(state.sampling, max_tokens=jnp.full((batch,), 1 << 30, jnp.int32)),
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
