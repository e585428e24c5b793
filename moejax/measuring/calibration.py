"""Measures the devices here: the figures of a hardware file. docs/performance-model.md says what each is used for."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.optimize import nnls

from moejax._sharding import MeshConfig, device_memory
from moejax.families.config import ModelConfig
from moejax.measuring.measured import check_real_devices, decode_seconds, prefill_seconds, random_model
from moejax.measuring.speeds import engine_operations, measure_speeds
from moejax.moe.split import Split
from moejax.ops.table import resolve_backend
from moejax.planning.hardware import DTYPES, Hardware, Link
from moejax.planning.routing import distinct_experts
from moejax.planning.workload import Workload
from moejax.runtime.huge_pages import collapse, copied

RUNS = 5  # of everything that is timed; the shortest counts, since whatever else ran could only make it longer
COPIED_BYTES = 2**28  # more than any cache holds
LARGEST_COPY = 2**32
PRODUCT_SECONDS = 0.02  # what a matrix product should take, so that starting it does not count
LARGEST_PRODUCT = 16_384  # rows and columns
SMALL, LARGE = 2**8, 2**24  # elements of the float32 all-reduces: latency alone, and mostly bandwidth
DEPTHS = (4, 12)  # layers of the models whose difference is the time of a layer
BATCHES = (1, 8)  # sequences of the steps whose difference is mostly the time of experts
PROMPT = 128  # tokens of the prefill, which is mostly the time of tokens, and not yet that of their attention
ONE_DEVICE = Split(mesh=MeshConfig(), dispatch="replicated", remark=None)

# A model whose weights take next to no time: what is left of a step is starting it, its loops and its layers.
NARROW = ModelConfig(
    vocab_size=256,
    embed_dim=64,
    num_layers=DEPTHS[0],
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    num_experts=8,
    experts_per_token=2,
    expert_dim=64,
    max_position_embeddings=512,
)


def calibrate(name: str = "here", told: Callable[[str], None] = lambda what: None) -> Hardware:
    """The figures of the devices here, all of one kind; `told` is told what is measured next.

    Raises:
        ValueError: on simulated devices.
    """
    check_real_devices("calibrate")
    device, count = jax.local_devices()[0], jax.local_device_count()
    told("bandwidth of the memory")
    bandwidth = copy_bandwidth(device)
    rates, speeds = {}, {}
    for dtype in DTYPES:
        told(f"products, experts and attention in {dtype}")
        rates[dtype] = matrix_rate(device, dtype)
        speeds[dtype] = measure_speeds(dtype)
    told("time of a layer")
    layer_overhead, expert_overhead, token_overhead = overheads()
    if count > 1:
        told("exchange between devices")
    link = measure_link(jax.local_devices()) if count > 1 else None
    by = f"measured by moejax mesh calibrate with jax {jax.__version__}"
    return Hardware(
        name=name,
        title=f"{device.device_kind}, measured",
        kinds=(device.device_kind.lower(),),
        memory_bytes=device_memory([device]).total_bytes,
        bandwidth=_rounded(bandwidth),
        matrix_rate={dtype: _rounded(rate) for dtype, rate in rates.items()},
        link=None if link is None else Link(**{name: _rounded(figure) for name, figure in vars(link).items()}),
        devices_per_node=count,
        layer_overhead=layer_overhead,
        expert_overhead=expert_overhead,
        token_overhead=token_overhead,
        speeds={
            dtype: {name: {rows: _rounded(rate) for rows, rate in curve.items()} for name, curve in curves.items()}
            for dtype, curves in speeds.items()
        },
        sources={
            "memory_bytes": "what the driver (of a CPU: the kernel) reports",
            "bandwidth": f"{by}: a copy larger than any cache, bytes read and written",
            "matrix_rate": f"{by}: the product of two square matrices, float32 result",
            "speeds": f"{by}: what the expert backend {resolve_backend('auto', device.platform)} runs, by rows",
            "layer_overhead": f"{by}: steps and a prefill of {DEPTHS[1]} narrow layers less those of {DEPTHS[0]}",
            "expert_overhead": f"{by}: the same, by experts read",
            "token_overhead": f"{by}: the same, by tokens",
            "link": f"{by}: all-reduces over {count} devices"
            if count > 1
            else "none: with a single device there is nothing to measure, so no mesh of several can be compared",
        },
    )


def _rounded(figure: float) -> float:
    """To four significant digits: the next measurement differs in the third."""
    return float(f"{figure:.4g}")


def copy_bandwidth(device: Any) -> float:
    """Bytes per second of a device's memory, read and written, by the fastest of copies of growing size.

    On a CPU both arrays are in huge pages, as weights are.
    """
    best, size = 0.0, COPIED_BYTES
    limit = min(LARGEST_COPY, device_memory([device]).free_bytes // 8)
    # Into a second array that is there already: fresh memory costs the time in which the system finds it.
    copy = jax.jit(lambda source, target: source + 0 * target[:1], donate_argnums=1)
    while size <= limit:
        source, target = (jax.device_put(jnp.ones((size // 4,), jnp.int32), device) for _ in range(2))
        source = copied(source)
        collapse(target)
        seconds = float("inf")
        for _ in range(RUNS):
            began = time.perf_counter()
            target = jax.block_until_ready(copy(source, target))
            seconds = min(seconds, time.perf_counter() - began)
        best = max(best, 2 * size / seconds)
        if seconds > PRODUCT_SECONDS:
            break
        size *= 2
    return best


def matrix_rate(device: Any, dtype: str) -> float:
    """FLOP per second of a matrix product as the model computes them: operands of `dtype`, a float32 result."""
    ops = engine_operations()
    product = jax.jit(ops.project)
    size = 512
    while True:
        x, weights = (jax.device_put(jnp.ones((size, size), dtype), device) for _ in range(2))
        seconds = _shortest(product, x, ops.storage.of(weights))
        if seconds > PRODUCT_SECONDS or size >= LARGEST_PRODUCT:
            return 2 * size**3 / seconds
        size *= 2


def overheads() -> tuple[float, float, float]:
    """Seconds of a layer, of each expert that it reads and of each token, where weights take next to no time.

    The least squares of relative errors over two decode steps and a prefill, with nothing below 0. More tokens read
    more experts, as many as uniform routing is expected to.
    """
    models = [random_model(dataclasses.replace(NARROW, num_layers=layers), ONE_DEVICE, "bfloat16") for layers in DEPTHS]
    parts, seconds = [], []
    for batch in BATCHES:
        workload = Workload(batch_size=batch, input_len=16, context=NARROW.max_position_embeddings)
        few, many = (decode_seconds(model, workload) for model in models)
        parts.append((1, distinct_experts(NARROW.num_experts, NARROW.experts_per_token, batch), batch))
        seconds.append((many - few) / (DEPTHS[1] - DEPTHS[0]))
    workload = Workload(batch_size=1, input_len=PROMPT, context=PROMPT)
    few, many = (prefill_seconds(model, workload) for model in models)
    parts.append((1, NARROW.num_experts, PROMPT))
    seconds.append((many - few) / (DEPTHS[1] - DEPTHS[0]))
    measured = np.maximum(seconds, 1e-9)[:, None]
    layer, expert, token = np.round(nnls(np.array(parts) / measured, np.ones(len(seconds)))[0], 9).tolist()
    return layer, expert, token  # to a nanosecond: no clock tells less


def measure_link(devices: Sequence[Any]) -> Link:
    """What connects devices, from all-reduces as rings (docs/performance-model.md): the bandwidth of a large one, the
    launch and the hops of small ones over two and over all devices; with only two devices, all of it counts as hops.
    """
    count = len(devices)
    small, large = (_all_reduce_seconds(devices, elements) for elements in (SMALL, LARGE))
    bandwidth = 2 * (count - 1) / count * (LARGE - SMALL) * 4 / max(large - small, 1e-9)
    if count == 2:
        return Link(bandwidth=bandwidth, latency=small / 2)
    pair = _all_reduce_seconds(devices[:2], SMALL)
    latency = max(0.0, (small - pair) / (2 * (count - 2)))
    return Link(bandwidth=bandwidth, latency=latency, launch=max(0.0, pair - 2 * latency))


def _all_reduce_seconds(devices: Sequence[Any], elements: int) -> float:
    """Of one all-reduce of so many float32 on each device."""
    mesh = Mesh(np.array(devices), ("ring",))
    whole = NamedSharding(mesh, PartitionSpec())
    spec = PartitionSpec()
    add = jax.shard_map(partial(jax.lax.psum, axis_name="ring"), mesh=mesh, in_specs=spec, out_specs=spec)
    return _shortest(jax.jit(add), jax.device_put(jnp.zeros((elements,), jnp.float32), whole))


def _shortest(function: Callable[..., Any], *args: Any) -> float:
    """Seconds of the shortest of a few runs, compiled and warmed up before."""
    jax.block_until_ready(function(*args))
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        jax.block_until_ready(function(*args))
        seconds.append(time.perf_counter() - began)
    return min(seconds)
