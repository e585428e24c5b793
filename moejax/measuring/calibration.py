"""Measures the devices here: the figures of a hardware file. docs/performance-model.md says what each is used for."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.optimize import nnls

from moejax._sharding import MeshConfig, device_memory
from moejax.families.config import ModelConfig
from moejax.measuring.measured import ModelTimes, check_real_devices, random_model
from moejax.measuring.speeds import curves, engine_operations, timed_operations
from moejax.moe.split import Split
from moejax.ops.table import resolve_backend
from moejax.planning.compare import ComparisonInputs, predict_split
from moejax.planning.hardware import DTYPES, Hardware, Link
from moejax.planning.routing import RoutingModel, distinct_experts
from moejax.planning.workload import Workload
from moejax.runtime.huge_pages import collapse, copied

RUNS = 5  # of what is timed once; the shortest counts, since whatever else ran could only make it longer
ROUNDS = 7  # of what is timed in turns, since a machine's speed changes for seconds at a time
COPIED_BYTES = 2**28  # more than any cache holds
LARGEST_COPY = 2**32
PRODUCT_SECONDS = 0.02  # what a matrix product should take, so that starting it does not count
LARGEST_PRODUCT = 16_384  # rows and columns
SMALL, LARGE = 2**8, 2**24  # elements of the float32 all-reduces: latency alone, and mostly bandwidth
ONE_DEVICE = Split(mesh=MeshConfig(), dispatch="replicated", remark=None)

WORKLOADS = tuple(Workload(batch_size=batch, input_len=512, context=1024) for batch in (1, 8))

# Layers that read more than caches hold, of a model without much else.
LAYERED = ModelConfig(
    vocab_size=256,
    embed_dim=1024,
    num_layers=12,
    num_heads=8,
    num_kv_heads=2,
    head_dim=128,
    num_experts=8,
    experts_per_token=2,
    expert_dim=512,
    max_position_embeddings=1024,
)


class Timable(Protocol):
    """What is measured in rounds."""

    def measure(self) -> None: ...


def calibrate(
    name: str = "here", told: Callable[[str], None] = lambda what: None, beside: Sequence[Timable] = ()
) -> Hardware:
    """The figures of the devices here, all of one kind; `told` is told what is measured next.

    beside: what else is measured in every round, to be compared with.

    Raises:
        ValueError: on simulated devices.
    """
    check_real_devices("calibrate")
    device, count = jax.local_devices()[0], jax.local_device_count()
    told("bandwidth of the memory")
    bandwidth = copy_bandwidth(device)
    rates, timed = {}, {}
    for dtype in DTYPES:
        told(f"products, experts and attention in {dtype}")
        rates[dtype] = matrix_rate(device, dtype)
        timed[dtype] = timed_operations(dtype)
    told("layers")
    layers = TimedLayers()
    for number in range(ROUNDS):
        told(f"all of them, {number + 1} of {ROUNDS}")
        for one in itertools.chain(*timed.values(), [layers], beside):
            one.measure()
    if count > 1:
        told("exchange between devices")
    link = measure_link(jax.local_devices()) if count > 1 else None
    by = f"measured by moejax mesh calibrate with jax {jax.__version__}"
    hardware = Hardware(
        name=name,
        title=f"{device.device_kind}, measured",
        kinds=(device.device_kind.lower(),),
        memory_bytes=device_memory([device]).total_bytes,
        bandwidth=_rounded(bandwidth),
        matrix_rate={dtype: _rounded(rate) for dtype, rate in rates.items()},
        link=None if link is None else Link(**{name: _rounded(figure) for name, figure in vars(link).items()}),
        devices_per_node=count,
        speeds={dtype: curves(operations) for dtype, operations in timed.items()},
        sources={
            "memory_bytes": "what the driver (of a CPU: the kernel) reports",
            "bandwidth": f"{by}: a copy larger than any cache, bytes read and written",
            "matrix_rate": f"{by}: the product of two square matrices, float32 result",
            "speeds": f"{by}: what the expert backend {resolve_backend('auto', device.platform)} runs, by rows",
            "layer_overhead": f"{by}: steps and a prefill of {LAYERED.num_layers} layers, less what the speeds predict",
            "expert_overhead": f"{by}: the same, by experts read",
            "token_overhead": f"{by}: the same, by tokens",
            "link": f"{by}: all-reduces over {count} devices"
            if count > 1
            else "none: with a single device there is nothing to measure, so no mesh of several can be compared",
        },
    )
    layer, expert, token = layers.overheads(hardware)
    return dataclasses.replace(hardware, layer_overhead=layer, expert_overhead=expert, token_overhead=token)


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


class TimedLayers:
    """Whole steps and a prefill, timed in rounds: what they take beyond what is predicted are overheads."""

    def __init__(self) -> None:
        model = random_model(LAYERED, ONE_DEVICE, "bfloat16")
        self._times = [(workload, ModelTimes(model, workload)) for workload in WORKLOADS]

    def measure(self) -> None:
        """One round."""
        for _, times in self._times:
            times.measure()

    def overheads(self, hardware: Hardware) -> tuple[float, float, float]:
        """Seconds of a layer, of each expert that it reads and of each token, beyond what `hardware` has without them.

        The least squares of relative errors over steps and a prefill, with nothing below 0. More tokens read more
        experts, as many as uniform routing is expected to.
        """
        experts, chosen = LAYERED.num_experts, LAYERED.experts_per_token
        plan = ComparisonInputs(config=LAYERED, hardware=hardware, routing=RoutingModel(experts, chosen))
        parts, beyond = [], []
        for workload, times in self._times:
            row, batch = predict_split(plan, ONE_DEVICE, workload), workload.batch_size
            assert row.decode is not None and row.prefill is not None, "any device holds such a model"
            found = [(times.decode_seconds, row.decode.seconds, distinct_experts(experts, chosen, batch), batch)]
            if batch == 1:
                found.append((times.prefill_seconds, row.prefill.seconds, experts, workload.input_len))
            for seconds, predicted, read, tokens in found:
                parts.append([LAYERED.num_layers * count / seconds for count in (1, read, tokens)])
                beyond.append(1 - predicted / seconds)
        layer, expert, token = np.round(nnls(np.array(parts), np.array(beyond))[0], 9).tolist()
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
