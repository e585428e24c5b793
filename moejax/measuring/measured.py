"""Predictions against the clock: prefill and decode steps of each split, timed on the devices that are really there.

What is timed is what `moejax.decode` runs, on prompts of random tokens. A model that the devices cannot hold is timed
with fewer layers, and compared with what is predicted for so many.
"""

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from scipy.stats import trim_mean

import moejax
from moejax._sharding import DeviceMemory, device_memory
from moejax.decoding.engine import DecodeRun
from moejax.decoding.requests import make_requests
from moejax.decoding.sampling_params import SamplingParams
from moejax.families.config import ModelConfig
from moejax.families.table import RANDOM, named_configs
from moejax.loading import random_model
from moejax.moe.split import Split, make_rules
from moejax.planning.checks import Measured
from moejax.planning.compare import ComparisonInputs, predict_split
from moejax.planning.footprint import footprint
from moejax.planning.rows import MeshRow
from moejax.planning.workload import Workload
from moejax.runtime.buckets import MAX_SEQUENCES

ROOM = 0.9  # of the free memory, that a timed model may take
WARM_SECONDS = 0.5  # of decoding before anything is timed: the first second is up to twice as slow
ROUNDS = 5  # of steps and a prefill in turns: a machine's neighbours change its speed for seconds at a time
OUTLIERS = 0.15  # of all times, on each side, that do not count
ROUND_SECONDS = 0.4  # of decoding, after which no more steps are timed in a round
FEWEST_CALLS = 4
ENOUGH_STEPS = 256  # a small model takes no longer than so many
LONG_SECONDS = 10.0  # of a prefill, after which it is not timed again
SHORTEST = 64  # context, so that there are steps to time


def check_real_devices(purpose: str) -> None:
    """Raises ValueError on simulated devices: they share the machine's cores, so their times mean nothing."""
    count = jax.device_count()
    if jax.default_backend() == "cpu" and count > jax.process_count():
        raise ValueError(
            f"{purpose} times real devices, but the {count} CPU devices here are simulated and share this machine's "
            "cores; unset JAX_NUM_CPU_DEVICES and --xla_force_host_platform_device_count"
        )


def check_measurable(devices: int, workloads: Sequence[Workload]) -> None:
    """Raises ValueError when a comparison cannot be timed here, before anything is."""
    check_real_devices("--measure")
    if devices != (here := jax.device_count()):
        raise ValueError(
            f"--measure times {devices} devices, but here {_are(here)}; give --devices {here}, or predict without "
            "--measure"
        )
    if (context := workloads[0].context) < SHORTEST:
        raise ValueError(f"--measure times steps with a cache of at least {SHORTEST} tokens, got --context {context}")
    if (largest := max(workload.batch_size for workload in workloads)) > MAX_SEQUENCES:
        raise ValueError(f"--measure times one batch of at most {MAX_SEQUENCES} sequences, got {largest}; use fewer")


def measure_rows(
    source: str, plan: ComparisonInputs, rows: Sequence[MeshRow], told: Callable[[str], None] = lambda label: None
) -> list[MeshRow]:
    """The rows with what was measured in those whose split exists; one model at a time is on the devices.

    Args:
        source: a checkpoint, whose weights are used, or a named configuration or config.json: then they are random.
        told: is told what is timed next.

    Raises:
        ValueError: when a model of one layer does not fit, or a checkpoint cannot be loaded.
    """
    timed = [(number, row) for number, row in enumerate(rows) if row.built and row.footprint is not None]
    found: dict[int, MeshRow] = {}
    for split in dict.fromkeys(row.split for _, row in timed):
        memory = device_memory(list(split.mesh.build().devices.flat))
        depths = {
            number: fitting_layers(plan.config, split, row.workload, memory)
            for number, row in timed
            if row.split == split
        }
        for layers in dict.fromkeys(depths.values()):
            model = load_split(source, plan.config, split, layers, rows[0].workload.dtype)
            for number in (number for number, depth in depths.items() if depth == layers):
                told(f"{rows[number].label}, batch {rows[number].workload.batch_size}")
                measured = measure_model(model, plan, rows[number].workload)
                found[number] = dataclasses.replace(rows[number], measured=measured)
            del model
            gc.collect()  # its memory is the next one's
    return [found.get(number, row) for number, row in enumerate(rows)]


def load_split(source: str, config: ModelConfig, split: Split, layers: int, dtype: str) -> moejax.Model:
    """The model on its devices: the checkpoint where there is one and all its layers fit, else random weights."""
    if layers == config.num_layers and not is_random(source):
        return moejax.load(source, mesh=split.mesh, dispatch=split.dispatch, dtype=dtype)
    return random_model(dataclasses.replace(config, num_layers=layers), split, dtype)


def measure_model(model: moejax.Model, plan: ComparisonInputs, workload: Workload) -> Measured:
    """Times a model of as many layers as fit, and predicts one of so many."""
    layers = model.config.num_layers
    split = Split(mesh=model.mesh, dispatch=model.parallel.dispatch, remark=None)
    shallow = dataclasses.replace(plan.config, num_layers=layers)
    predicted = predict_split(dataclasses.replace(plan, config=shallow, usable=1e9), split, workload)
    assert predicted.decode is not None and predicted.prefill is not None, "any model fits such devices"
    times = ModelTimes(model, workload)
    for _ in range(ROUNDS):
        times.measure()
    return Measured(
        decode_seconds=times.decode_seconds,
        prefill_seconds=times.prefill_seconds,
        predicted_decode_seconds=predicted.decode.seconds,
        predicted_prefill_seconds=predicted.prefill.seconds,
        layers=layers,
        reduced=layers < plan.config.num_layers,
    )


def is_random(source: str) -> bool:
    """Whether a model has no weights of its own."""
    return source.removeprefix(RANDOM) in named_configs() or source.endswith(".json") or source.startswith(RANDOM)


def fitting_layers(config: ModelConfig, split: Split, workload: Workload, memory: DeviceMemory) -> int:
    """The most layers with which the model fits what is free.

    Raises:
        ValueError: when not even one does.
    """
    rules, free = make_rules(config, split.mesh, split.dispatch), int(memory.free_bytes * ROOM)
    for layers in range(config.num_layers, 0, -1):
        if footprint(dataclasses.replace(config, num_layers=layers), rules, workload).total <= free:
            return layers
    needed = footprint(dataclasses.replace(config, num_layers=1), rules, workload).total
    raise ValueError(
        f"not even one layer fits {split.mesh}: {needed / 1e9:.1f} GB per device, but {memory.device} has "
        f"{free / 1e9:.1f} GB for it; measure a smaller model or batch"
    )


class ModelTimes:
    """Seconds of a model's decode step and prefill, typical of rounds that may be far apart.

    A call of the loop runs as many steps as take about 50 ms, as in a stream, so that a large model is not timed for
    minutes.
    """

    def __init__(self, model: moejax.Model, workload: Workload) -> None:
        """Compiles and warms up."""
        self._model, self._workload = model, workload
        self._steps: list[float] = []
        self._prefills: list[float] = []
        _step_seconds(model, workload, WARM_SECONDS)
        self._first_prefill = _prefill_seconds(model, workload)

    def measure(self) -> None:
        """One round: some steps with a cache of `workload.context` tokens, and a prefill with its choice of tokens."""
        self._steps += _step_seconds(self._model, self._workload, ROUND_SECONDS)[1:]  # the first call has a single step
        if self._first_prefill < LONG_SECONDS or not self._prefills:
            self._prefills.append(_prefill_seconds(self._model, self._workload))

    @property
    def decode_seconds(self) -> float:
        return typical(self._steps)

    @property
    def prefill_seconds(self) -> float:
        return typical(self._prefills)


def typical(seconds: Sequence[float]) -> float:
    """Their mean without outliers: of a machine that has two speeds, the median would be either of them."""
    return float(trim_mean(seconds, OUTLIERS))


def _prefill_seconds(model: moejax.Model, workload: Workload) -> float:
    """Of feeding all prompts and choosing their first tokens."""
    run = _run(model, workload, workload.input_len, max_tokens=1)
    for _ in run.tokens():
        pass
    return run.times.prefill


def _step_seconds(model: moejax.Model, workload: Workload, enough: float) -> list[float]:
    """Seconds per step of each call, until they are `enough` in all."""
    prompt = max(1, workload.context - 1 - ENOUGH_STEPS)
    run = _run(model, workload, prompt, max_tokens=workload.context - prompt)
    found: list[float] = []
    steps, seconds = 0, 0.0
    for _ in run.tokens():
        if run.steps == steps:
            continue  # prompts were fed
        found.append((run.times.decode - seconds) / (run.steps - steps))
        steps, seconds = run.steps, run.times.decode
        if len(found) >= FEWEST_CALLS and seconds > enough:
            break
    return found


def _run(model: moejax.Model, workload: Workload, length: int, *, max_tokens: int) -> DecodeRun:
    """As many sequences as the workload has, of random prompts that do not end by themselves."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, model.config.vocab_size, (workload.batch_size, length)).tolist()
    requests = make_requests(model, prompts, SamplingParams(max_tokens=max_tokens, ignore_eos=True), {})
    return DecodeRun(model=model, requests=requests, stream=True, began=time.perf_counter())


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"
