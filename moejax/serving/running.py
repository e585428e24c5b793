"""The requests that have slots: drives the scheduler, paces its calls, and writes to mailboxes and metrics.

Used by the engine's thread alone.
"""

import logging
import time
from collections.abc import Callable

import numpy as np

from moejax.decoding.failures import NonFiniteLogitsError, failure_in
from moejax.decoding.scheduler import Scheduler, StartedSteps
from moejax.decoding.sequences import NewTokens, SequenceGroup
from moejax.decoding.state import Features
from moejax.runtime.buckets import STEPS_PER_CALL
from moejax.serving.fair_queue import FairQueue
from moejax.serving.jobs import EngineError, Mailbox, RequestFailed, ServedRequest, make_delta, wake
from moejax.serving.metrics import Metrics

CHUNK_SECONDS = 0.05  # how long one call of the decode loop should take: what a new request may have to wait
# The same while prompts wait to be fed, so that a long one is not held up for long, and for the first call after
# idling: requests tend to come together, and the first one would otherwise keep the others waiting for a whole call.
SHARED_SECONDS = CHUNK_SECONDS / 4


_logger = logging.getLogger(__name__)


class RunningRequests:
    """The requests in a scheduler's slots.

    feed_seconds: what the last call of `feed` took.
    """

    def __init__(self, scheduler: Scheduler, metrics: Metrics) -> None:
        self.scheduler, self.metrics = scheduler, metrics
        self._jobs: dict[SequenceGroup, ServedRequest] = {}
        self._written: set[Mailbox] = set()
        self._step_seconds: dict[tuple[Features, int], float] = {}  # by what a call can do, and its slots
        self._first_call = False  # whether nothing generated before what was fed last
        self.feed_seconds = 0.0

    @property
    def jobs(self) -> list[ServedRequest]:
        """Requests that have slots."""
        return list(self._jobs.values())

    def can_take(self, queue: FairQueue) -> bool:
        """Whether there are slots for the request that is next."""
        first = queue.first
        return first is not None and len(first.sequences) <= self.scheduler.free

    def take(self, queue: FairQueue) -> None:
        """Gives waiting requests their slots, as far as there are enough for the first of them."""
        while self.can_take(queue):
            job = queue.pop()
            job.started = time.perf_counter()
            self._jobs[job.group] = job
            self.scheduler.add(job.group)

    def drop_cancelled(self) -> None:
        """Takes the slots from requests that nobody waits for any more."""
        for job in self.jobs:
            if job.cancelled:
                self.give_up(job, None)

    def give_up(self, job: ServedRequest, error: EngineError | RequestFailed | None) -> None:
        """Ends a request that has slots, because of `error` or because nobody waits for it."""
        self.scheduler.drop(job.group)
        del self._jobs[job.group]
        job.mailbox.end(error)
        self._written.add(job.mailbox)
        self.metrics.finish(job, "abort")

    def feed(self) -> None:
        """Feeds the next part of a prompt, or several if they are short."""
        began = time.perf_counter()
        self._first_call |= not self.scheduler.running
        fed = self.scheduler.feed()
        now = time.perf_counter()
        self.feed_seconds = now - began
        self._count_experts(fed.expert_rows)
        self.metrics.prompt_tokens.inc(fed.prompt_tokens)
        self._deliver(fed.tokens, now)

    def step(self, undisturbed: Callable[[], bool]) -> None:
        """Calls of the decode loop, each as long as CHUNK_SECONDS, until something else may have to be done.

        What a call made is handed out while the devices work on the next one, which is made first only where it is the
        one that would be made afterwards: when no sequence can have ended, and nothing else is to be done between the
        two (`undisturbed`, and no prompt is being fed). What requests get, and how long a new one waits, are then the
        same in either order.
        """
        call = self._start(0)
        while call is not None:
            started, kind, began = call
            call = None
            done = self.scheduler.wait(started)
            now = time.perf_counter()
            measured, known = (now - began) / done.taken, self._step_seconds.get(kind)
            self._step_seconds[kind] = measured if known is None else 0.5 * (known + measured)
            goes_on = self.scheduler.running and not (self.scheduler.feeding or done.may_have_ended)
            if goes_on and undisturbed():
                call = self._start(done.taken)
            self._count_experts(done.expert_rows)
            self._deliver(self.scheduler.hand_out(done), now)
            self.flush()

    def _start(self, ahead: int) -> tuple[StartedSteps, tuple[Features, int], float]:
        """Has the devices take as many steps as should take CHUNK_SECONDS; does not wait for them."""
        slots = self.scheduler.slots
        seconds = SHARED_SECONDS if self.scheduler.feeding or self._first_call else CHUNK_SECONDS
        self._first_call = False
        running, (features, shape) = slots.running.values(), slots.next_call(1, ahead)
        kind = features, shape.slots
        known = self._step_seconds.get(kind)
        longest = max(one.request.params.max_tokens - len(one.tokens) for one in running) - ahead
        wanted = 1 if known is None else max(1, min(STEPS_PER_CALL, longest, int(seconds / known)))
        began = time.perf_counter()
        return self.scheduler.start(wanted, ahead=ahead), kind, began

    def _count_experts(self, rows: np.ndarray) -> None:
        """Counts rows per expert, from rows per place [d, L, P]."""
        self.metrics.add_expert_rows(self.scheduler.slots.model.structure.experts.by_expert(rows))

    def flush(self) -> None:
        """Wakes everybody who got something, and shows how full the server is."""
        wake(self._written)
        self._written.clear()
        slots = self.scheduler.slots
        self.metrics.running.set(len(self._jobs))
        self.metrics.cache_use.set(slots.cached_tokens / (slots.shapes.parts.batch * slots.shapes.length))

    def _fail(self, job: ServedRequest, failure: Exception) -> None:
        """Ends a request that cannot be answered; who runs the server is told, too."""
        if isinstance(failure, NonFiniteLogitsError):
            failure = NonFiniteLogitsError(index=job.place, tokens=failure.tokens, dtype=failure.dtype)
            _logger.warning("a request failed: %s", failure)
        else:
            _logger.error("a request failed", exc_info=failure)
        self.give_up(job, RequestFailed(f"{type(failure).__name__}: {failure}"))

    def _deliver(self, gained: list[NewTokens], now: float) -> None:
        dtype = self.scheduler.slots.model.dtype
        for one in gained:
            job = self._jobs.get(one.group)
            if job is None:
                continue  # another output of it has failed
            if one.events:
                self._hand_out(job, one, now)
            if failure := failure_in([one], dtype):
                self._fail(job, failure)
        reasons = {one.group: one.sequence.finish_reason for one in gained}  # of the output that came last
        for group, reason in reasons.items():
            if group in self._jobs and group.finished:
                job = self._jobs.pop(group)
                job.mailbox.end()
                self.metrics.finish(job, reason or "length")

    def _hand_out(self, job: ServedRequest, gained: NewTokens, now: float) -> None:
        job.mailbox.put(make_delta(job, gained, now))
        self._written.add(job.mailbox)
        count = len(gained.events)
        self.metrics.generation_tokens.inc(count)
        if job.first_token is None:
            job.first_token = now
            self.metrics.ttft.observe(now - job.arrived)
        if len(gained.sequence.tokens) > count and job.last_token is not None:
            self.metrics.observe_tokens(count, now - job.last_token)
        job.last_token = now
