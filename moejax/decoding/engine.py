"""The host side of decoding: batches rows, feeds prompts, runs the compiled loop, and hands out what it generated."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from moejax.decoding import steps
from moejax.decoding.requests import Request
from moejax.decoding.results import DecodeEvent
from moejax.decoding.rows import Row
from moejax.decoding.state import DecodeState, Features, RowParams, empty_state
from moejax.loading import Model
from moejax.model.cache import KVCache, empty_cache
from moejax.runtime import buckets
from moejax.runtime.buckets import MAX_ROWS
from moejax.weights.declarations import cache_placements
from sharding import bytes_per_device, device_memory

STREAM_SECONDS = 0.05  # how long a streaming call of the decode loop should take
STREAM_STEPS = 4  # its steps where several processes decode


@dataclass(kw_only=True)
class Timing:
    """Seconds of one batch, without compilation, and its padding."""

    began: float
    compiled_before: float
    ttft: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    padded_rows: int = 0


@dataclass(kw_only=True, eq=False)
class Batch:
    """Rows that are decoded together, and what was learnt of their prompts.

    prompt_reports: for each request, what was reported of its prompt, as host arrays [T, ...], part after part.
    expert_rows: int64 [d, L, E], rows that each expert computed, for each of the d groups of devices.
    """

    rows: list[Row]
    timing: Timing
    expert_rows: np.ndarray
    prompt_reports: dict[int, list[steps.PromptReport]] = field(default_factory=dict)


def split_batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows in the order given, MAX_ROWS at a time."""
    for start in range(0, len(rows), MAX_ROWS):
        yield list(rows[start : start + MAX_ROWS])


def run_batch(model: Model, batch: Batch, *, stream: bool) -> Iterator[DecodeEvent]:
    """Decodes the rows of a batch to their end, an event per token."""
    rows, timing = batch.rows, batch.timing
    features = _features(rows, model.config.vocab_size)
    size = buckets.batch_bucket(len(rows), model.parallel.rules.parts("batch"))
    length = buckets.length_bucket(
        max(len(row.request.prompt) + row.request.params.max_tokens for row in rows), buckets.MIN_CACHE
    )
    timing.padded_rows = size - len(rows)
    _check_cache_fits(model, size, length)
    state = model.programs.call(
        ("empty state", features, size, length),
        lambda: empty_state(model.config, features, size, length, model.dtype, model.parallel),
    )
    clock = _Clock(model)
    first: list[DecodeEvent] = []
    entropy = _shared_entropy()
    for group in _prefill_groups(rows):
        cache, logits = _feed(model, batch, group, features)
        state, output = _admit(model, state, cache, logits, group, rows, features, (size, length), entropy)
        first += _push(rows, [rows.index(row) for row in _rows_of(group, rows)], jax.device_get(output))
    timing.prefill = clock.lap()
    timing.ttft = time.perf_counter() - timing.began - (model.programs.compile_seconds - timing.compiled_before)
    yield from first

    step_seconds: float | None = None
    stops = any(row.request.params.stop for row in rows)
    while any(row.finish_reason is None for row in rows):
        wanted = _steps_wanted(step_seconds) if stream or stops else buckets.STEPS_PER_CALL
        clock.lap()  # what the reader of a stream did since the last step is no time of ours
        cancelled = np.array([row.finish_reason is not None for row in rows] + [False] * (size - len(rows)))
        state, generated = model.programs.call(
            ("generate", features, size, length),
            lambda params, *args: steps.generate(model.merged(params), features, *args),
            model.params,
            state,
            cancelled,
            np.int32(wanted),
            donate=(1,),
        )
        generated: steps.Generated = jax.device_get(generated)
        taken, output = int(generated.taken), generated.outputs
        assert taken > 0, "no row is active on the device, yet some are unfinished here"
        seconds = clock.lap()
        timing.decode += seconds
        step_seconds = seconds / taken
        batch.expert_rows += generated.rows
        for step in range(taken):
            one = jax.tree.map(lambda leaf, step=step: leaf[step], output)
            yield from _push(rows, range(len(rows)), one)


class _Clock:
    """Laps in seconds, without the time that compiling took."""

    def __init__(self, model: Model) -> None:
        self._programs = model.programs
        self._last = self._now()

    def _now(self) -> float:
        return time.perf_counter() - self._programs.compile_seconds

    def lap(self) -> float:
        now = self._now()
        seconds, self._last = now - self._last, now
        return seconds


def _features(rows: Sequence[Row], vocabulary: int) -> Features:
    params = [row.request.params for row in rows]
    wanted = [p.logprobs for p in params if p.logprobs is not None]
    return Features(
        sample=any(not p.greedy for p in params),
        filter=any(p.filtered for p in params),
        penalize=any(p.penalized for p in params),
        min_tokens=any(p.min_tokens for p in params),
        logprobs=min(vocabulary, buckets.count_bucket(max(wanted))) if wanted else None,
        experts=any(p.return_routed_experts for p in params),
        stop_ids=max(1, buckets.count_bucket(max(len(row.request.stop_ids) for row in rows))),
    )


def _check_cache_fits(model: Model, size: int, length: int) -> None:
    placements = cache_placements(model.config, model.parallel.rules, size, length, model.dtype)
    needed = bytes_per_device(placements)
    memory = device_memory(model.devices)
    if needed > memory.free_bytes:
        raise ValueError(
            f"the key/value cache of {size} rows x {length} tokens needs {needed / 1e9:.1f} GB"
            f"{' per device' if model.mesh.size > 1 else ''}, but {memory.device} has {memory.free_bytes / 1e9:.1f} GB "
            "free: give fewer or shorter prompts at a time, or a lower max_tokens"
        )


def _prefill_groups(rows: Sequence[Row]) -> Iterator[list[Request]]:
    """The distinct prompts of `rows`, longest first, in groups that feed at most PREFILL_TOKENS at a time."""
    requests = list({row.request.index: row.request for row in rows}.values())
    requests.sort(key=lambda request: -len(request.prompt))
    while requests:
        width = min(buckets.prompt_bucket(len(requests[0].prompt)), buckets.PREFILL_CHUNK)
        count = buckets.prompts_per_call(width)
        yield requests[:count]
        requests = requests[count:]


def _rows_of(group: Sequence[Request], rows: Sequence[Row]) -> list[Row]:
    wanted = {request.index for request in group}
    return [row for row in rows if row.request.index in wanted]


def _feed(model: Model, batch: Batch, group: list[Request], features: Features) -> tuple[KVCache, jax.Array]:
    """Feeds a group of prompts; returns their cache [Bg, ...] and the logits [Bg, V] after each one's last token."""
    config = model.config
    size = buckets.batch_bucket(len(group), model.parallel.rules.parts("batch"))
    length = buckets.prompt_bucket(len(group[0].prompt))
    width = min(length, buckets.PREFILL_CHUNK)
    asked = [r.params.prompt_logprobs for r in group if r.params.prompt_logprobs is not None]
    best = min(config.vocab_size, buckets.count_bucket(max(asked))) if asked else None
    tokens = np.zeros((size, length + 1), np.int32)
    lengths = np.zeros((size,), np.int32)
    for row, request in enumerate(group):
        tokens[row, : len(request.prompt)] = request.prompt
        lengths[row] = len(request.prompt)
    cache, logits = model.programs.call(
        ("empty cache", size, length),
        lambda: (
            empty_cache(config, size, length, model.dtype, model.parallel),
            model.parallel.constrain(jnp.zeros((size, config.vocab_size), jnp.float32), "batch", "vocab"),
        ),
    )
    for start in range(0, int(lengths.max()), width):
        cache, logits, report, expert_rows = model.programs.call(
            ("prefill", features.experts, best, size, length),
            lambda params, *args: steps.prefill(model.merged(params), features.experts, best, *args),
            model.params,
            cache,
            logits,
            tokens[:, start : start + width],
            tokens[:, start + 1 : start + width + 1],
            np.int32(start),
            lengths,
            donate=(1, 2),
        )
        batch.expert_rows += jax.device_get(expert_rows)
        if best is not None or features.experts:
            reported = jax.device_get(report)
            for row, request in enumerate(group):
                mine = jax.tree.map(lambda leaf, row=row: leaf[row], reported)
                batch.prompt_reports.setdefault(request.index, []).append(mine)
    return cache, logits


def _admit(
    model: Model,
    state: DecodeState,
    cache: KVCache,
    logits: jax.Array,
    group: list[Request],
    rows: list[Row],
    features: Features,
    shape: tuple[int, int],
    entropy: int,
) -> tuple[DecodeState, steps.StepOutput]:
    """Moves a prefilled group into its rows of the state; the outputs are one per row, in the order of `_rows_of`."""
    config, admitted = model.config, _rows_of(group, rows)
    count = buckets.batch_bucket(len(admitted), model.parallel.rules.parts("batch"))
    places = {request.index: place for place, request in enumerate(group)}
    sources = np.zeros((count,), np.int32)
    targets = np.full((count,), shape[0], np.int32)  # past the end: padding
    lengths = np.ones((count,), np.int32)
    in_prompt = np.zeros((count, config.vocab_size if features.penalize else 0), bool)
    for i, row in enumerate(admitted):
        sources[i] = places[row.request.index]
        targets[i] = rows.index(row)
        lengths[i] = len(row.request.prompt)
        if features.penalize:
            in_prompt[i, row.request.prompt] = True
    return model.programs.call(
        ("admit", features, logits.shape[0], cache[0].length, count, shape),
        lambda *args: steps.admit(model.parallel, features, *args),
        state,
        cache,
        logits,
        sources,
        targets,
        lengths,
        in_prompt,
        row_params(admitted, count, features, entropy),
        donate=(0,),
    )


def row_params(rows: Sequence[Row], count: int, features: Features, entropy: int) -> RowParams:
    """The sampling parameters of `rows` as arrays of `count` rows; `entropy` is for those without a seed."""

    def column(name: str, dtype: type, padding: float) -> Any:
        values = [getattr(row.request.params, name) for row in rows]
        return np.array(values + [padding] * (count - len(rows)), dtype)

    most = np.iinfo(np.int32).max
    top_k: Any = np.array([min(r.request.params.top_k, most) for r in rows] + [0] * (count - len(rows)), np.int32)
    stop_ids: Any = np.full((count, features.stop_ids), -1, np.int32)
    for i, row in enumerate(rows):
        stop_ids[i, : len(row.request.stop_ids)] = row.request.stop_ids
    seeds: Any = np.array([_row_seed(row, entropy) for row in rows] + [(0, 0)] * (count - len(rows)), np.uint32)
    return RowParams(
        temperature=column("temperature", np.float32, 0),
        top_k=top_k,
        top_p=column("top_p", np.float32, 1),
        min_p=column("min_p", np.float32, 0),
        repetition_penalty=column("repetition_penalty", np.float32, 1),
        presence_penalty=column("presence_penalty", np.float32, 0),
        frequency_penalty=column("frequency_penalty", np.float32, 0),
        key=seeds,
        max_tokens=column("max_tokens", np.int32, 1),
        min_tokens=column("min_tokens", np.int32, 0),
        stop_ids=stop_ids,
    )


def _row_seed(row: Row, entropy: int) -> tuple[int, ...]:
    """64 bits for a row's random numbers, from the request's seed (or `entropy`) and the output's number."""
    seed = row.request.params.seed
    source = [entropy, row.request.index, row.output] if seed is None else [seed, row.output]
    return tuple(np.random.SeedSequence(source).generate_state(2).tolist())


def _shared_entropy() -> int:
    """Fresh random bits, the same in all processes: they must draw the same tokens."""
    bits: Any = np.array(np.random.SeedSequence().generate_state(2))
    if jax.process_count() > 1:
        bits = multihost_utils.broadcast_one_to_all(bits)
    return int(bits[0]) << 32 | int(bits[1])


def _steps_wanted(step_seconds: float | None) -> int:
    """Steps per call where somebody waits for each token: as many as take STREAM_SECONDS, known after the first.

    Several processes have to take the same number of steps, which their clocks would not agree on.
    """
    if jax.process_count() > 1:
        return STREAM_STEPS
    if step_seconds is None:
        return 1
    return max(1, min(buckets.STEPS_PER_CALL, int(STREAM_SECONDS / max(1e-6, step_seconds))))


def _push(rows: list[Row], which: Sequence[int], output: steps.StepOutput) -> list[DecodeEvent]:
    """Hands one step's host outputs to the rows they belong to: `output` entry i is of row `which[i]`."""
    events = []
    for place, index in enumerate(which):
        row, token = rows[index], int(output.token[place])
        if row.finish_reason is not None or token < 0:
            continue
        if output.experts is not None:
            row.experts.append(np.asarray(output.experts[place])[None])
        scores = None if output.scores is None else jax.tree.map(lambda leaf, at=place: leaf[at], output.scores)
        events.append(row.push(token, scores))
    return events
