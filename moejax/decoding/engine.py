"""One call of `decode`: gives its sequences to the scheduler, longest first, and drives it until all have ended.

No decision depends on a clock, but how many steps a call of a stream takes, where a single process decodes: so every
process of a run does the same, and streamed or not, the same programs compute the same tokens.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import jax
import numpy as np

from moejax._sharding import bytes_per_device, device_memory
from moejax.decoding.requests import Request
from moejax.decoding.sampling_arrays import shared_entropy
from moejax.decoding.scheduler import Scheduler
from moejax.decoding.sequences import NewTokens, SequenceGroup, make_sequences
from moejax.decoding.shapes import CallShapes, SlotParts
from moejax.decoding.slots import Slots
from moejax.decoding.state import Features
from moejax.families.kv_cache import cache_placements
from moejax.loading import Model
from moejax.runtime import buckets
from moejax.runtime.buckets import MAX_SEQUENCES

STREAM_SECONDS = 0.05  # how long a streaming call of the decode loop should take
# Steps of a call where several processes stream, and where stop strings are looked for: they end a sequence between
# calls, so that calls have to be the same, streamed or not.
FIXED_STEPS = 4
FEWEST_STOP_IDS = 4  # there is room for: what ends a text, and some of a request's own, share a program
REFILL = 8  # new sequences get slots when one in so many is free: few and large calls feed them


@dataclass(kw_only=True)
class Times:
    """Seconds of one call of `decode` so far, without compilation. prefill: feeding prompts. decode: steps."""

    began: float
    compiled_before: float
    prefill: float = 0.0
    decode: float = 0.0


@dataclass(kw_only=True)
class RequestTimes:
    """Of one request: `ttft`, and the call's seconds of prefill and decode when its first and last tokens came."""

    ttft: float
    prefill: float
    decode_before: float
    decode_after: float


@dataclass(kw_only=True)
class DecodeRun:
    """The requests of one call of `decode` on their way.

    groups: their sequences, by the index of the request.  batch, length: slots, and cache positions of each.
    steps: of the decode loop so far.  request_times: by index, of requests that have tokens.
    expert_rows: int64 [d, L, E], rows that each expert computed so far, for each of the d groups of devices.
    """

    model: Model
    requests: list[Request]
    stream: bool
    began: float
    steps: int = 0
    request_times: dict[int, RequestTimes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model, requests = self.model, self.requests
        parts = model.parallel.rules.parts("batch")
        self.sequences = sum(request.params.n for request in requests)
        self.batch = buckets.batch_bucket(min(self.sequences, MAX_SEQUENCES), parts)
        self.length = max(
            max(
                buckets.length_bucket(len(one.prompt) + one.params.max_tokens, buckets.MIN_CACHE),
                buckets.prompt_bucket(len(one.prompt)),  # whole parts of prompts are written
            )
            for one in requests
        )
        most = min(self.batch, MAX_SEQUENCES)
        self.groups = {request.index: list(_groups(model, request, most)) for request in requests}
        self.times = Times(began=self.began, compiled_before=model.programs.compile_seconds)
        self.expert_rows = np.zeros(model.expert_rows_shape, np.int64)
        self._stops = any(request.params.stop for request in requests)
        self._step_seconds: float | None = None

    def check_fits(self) -> None:
        """Raises ValueError where the devices have no room for the cache of these requests."""
        _check_cache_fits(self.model, self.batch, self.length)

    def tokens(self) -> Iterator[list[NewTokens]]:
        """Decodes everything; yields what each call of a compiled program made."""
        scheduler = self._make_scheduler()
        groups = [group for of_request in self.groups.values() for group in of_request]
        if self.sequences > self.batch:  # those that start last should end first
            groups.sort(key=lambda group: -group.request.params.max_tokens)
        waiting = deque(groups)
        while waiting or scheduler.groups:
            # Again before a step where so many ended with their first token that the next may have their slots.
            while waiting and scheduler.taken <= self._most_taken(waiting):
                while waiting and len(waiting[0].sequences) <= scheduler.free:
                    scheduler.add(waiting.popleft())
                while scheduler.feeding:
                    yield self._feed(scheduler)
            if scheduler.running:
                yield from self._step(scheduler, waiting)

    def _make_scheduler(self) -> Scheduler:
        model, requests = self.model, self.requests
        self.check_fits()
        asked = [one.params.prompt_logprobs for one in requests if one.params.prompt_logprobs is not None]
        shapes = CallShapes(
            parts=SlotParts(self.batch, model.parallel.rules.parts("batch")),
            length=self.length,
            prompt_logprobs=min(model.config.vocab_size, buckets.count_bucket(max(asked))) if asked else None,
            prompt_experts=any(one.params.return_routed_experts for one in requests),
        )
        return Scheduler(Slots(model, shapes, (_features(requests, model.config.vocab_size),), shared_entropy()))

    def _most_taken(self, waiting: deque[SequenceGroup]) -> int:
        """Slots that may be taken when the next of those that wait get theirs."""
        few = min(max(1, self.batch // REFILL), sum(len(group.sequences) for group in waiting))
        return self.batch - max(few, len(waiting[0].sequences))

    def _feed(self, scheduler: Scheduler) -> list[NewTokens]:
        clock = _Clock(self.model)
        fed = scheduler.feed()
        self.times.prefill += clock.lap()
        self.expert_rows += fed.expert_rows
        self._note(fed.tokens)
        return fed.tokens

    def _step(self, scheduler: Scheduler, waiting: deque[SequenceGroup]) -> Iterator[list[NewTokens]]:
        """Calls of the decode loop until a sequence may have ended, or one call of a stream."""
        clock = _Clock(self.model)
        sizes = scheduler.slots.shapes.parts.sizes
        smaller = max((size for size in sizes if size < scheduler.taken), default=0)
        least = self._most_taken(waiting) if waiting else smaller
        call = scheduler.start(self._steps_wanted(), least=least)
        while call is not None:
            done = scheduler.wait(call)
            seconds = clock.lap()
            self.times.decode += seconds
            self.steps += done.taken
            self._step_seconds = seconds / done.taken
            self.expert_rows += done.expert_rows
            call = None
            if not (self.stream or done.may_have_ended):
                call = scheduler.start(self._steps_wanted(), ahead=done.taken, least=least)
            gained = scheduler.hand_out(done)
            self._note(gained)
            yield gained

    def _steps_wanted(self) -> int:
        """Steps of the next call: in a stream as many as take STREAM_SECONDS, known after the first.

        Several processes have to take the same number of steps, which their clocks would not agree on.
        """
        if self._stops or (self.stream and jax.process_count() > 1):
            return FIXED_STEPS
        if not self.stream:
            return buckets.STEPS_PER_CALL
        if self._step_seconds is None:
            return 1
        return max(1, min(buckets.STEPS_PER_CALL, int(STREAM_SECONDS / max(1e-6, self._step_seconds))))

    def _note(self, gained: list[NewTokens]) -> None:
        """Notes when requests got their first and, so far, last tokens."""
        compiled = self.model.programs.compile_seconds - self.times.compiled_before
        ttft = time.perf_counter() - self.times.began - compiled
        for one in gained:
            times = self.request_times.setdefault(
                one.group.request.index,
                RequestTimes(
                    ttft=ttft,
                    prefill=self.times.prefill,
                    decode_before=self.times.decode,
                    decode_after=self.times.decode,
                ),
            )
            times.decode_after = self.times.decode


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


def _groups(model: Model, request: Request, most: int) -> Iterator[SequenceGroup]:
    """A request's sequences, at most so many together."""
    sequences = make_sequences(model, request)
    for start in range(0, len(sequences), most):
        yield SequenceGroup(request=request, sequences=sequences[start : start + most])


def _features(requests: list[Request], vocabulary: int) -> Features:
    params = [request.params for request in requests]
    wanted = [p.logprobs for p in params if p.logprobs is not None]
    return Features(
        sample=any(not p.greedy for p in params),
        filter=any(p.filtered for p in params),
        penalize=any(p.penalized for p in params),
        biases=buckets.count_bucket(max(len(p.logit_bias) for p in params)),
        min_tokens=any(p.min_tokens for p in params),
        logprobs=min(vocabulary, buckets.count_bucket(max(wanted))) if wanted else None,
        experts=any(p.return_routed_experts for p in params),
        stop_ids=max(FEWEST_STOP_IDS, buckets.count_bucket(max(len(request.stop_ids) for request in requests))),
    )


def _check_cache_fits(model: Model, batch: int, length: int) -> None:
    placements = cache_placements(model.config, model.parallel.rules, batch, length, model.dtype)
    needed = bytes_per_device(placements)
    memory = device_memory(model.devices)
    if needed > memory.free_bytes:
        raise ValueError(
            f"the key/value cache of {batch} sequences x {length} tokens needs {needed / 1e9:.1f} GB"
            f"{' per device' if model.mesh.size > 1 else ''}, but {memory.device} has {memory.free_bytes / 1e9:.1f} GB "
            "free: give fewer or shorter prompts at a time, or a lower max_tokens"
        )
