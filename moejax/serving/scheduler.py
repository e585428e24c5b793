"""Which request is in which slot, and what the next call of a compiled program does. Used by one thread."""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from moejax.decoding.logprobs import TokenScores
from moejax.decoding.rows import Row
from moejax.decoding.steps import Generated
from moejax.runtime.buckets import STEPS_PER_CALL
from moejax.serving.jobs import EngineError, Job, Mailbox, push, wake
from moejax.serving.metrics import Metrics
from moejax.serving.slots import Part, Slots, level_of

CHUNK_SECONDS = 0.05  # how long one call of the decode loop should take: what a new request may have to wait
# The same while prompts wait to be fed, so that a long one is not held up for long, and for the first call after
# idling: requests tend to come together, and the first one would otherwise keep the others waiting for a whole call.
SHARED_SECONDS = CHUNK_SECONDS / 4


class Call(NamedTuple):
    """A call of the decode loop that the devices work on.

    rows: those that it steps, by slot.  slots: those that its outputs are of.  generated: the outputs, on the devices.
    kind: what its speed is remembered by: level, and rows per step.  began: when it was made.
    """

    rows: dict[int, Row]
    slots: Sequence[int]
    generated: Generated
    kind: tuple[int, int]
    began: float


class Scheduler:
    """The requests that have slots.

    A request gets all its slots at once, in the order of arrival. Its prompt is fed in parts; of several outputs the
    first gets all parts, the others only the last, on top of a copy of what the first has.
    """

    def __init__(self, slots: Slots, metrics: Metrics) -> None:
        self.slots, self.metrics = slots, metrics
        self._free = list(reversed(range(slots.shapes.batch)))
        self._parts: deque[Part] = deque()
        self._jobs: dict[Row, Job] = {}  # of the rows that have a slot
        self._told: set[Mailbox] = set()
        self._step_seconds: dict[tuple[int, int], float] = {}  # by the kind of a call
        self._first_call = False  # whether nothing generated before what was fed last
        self.feed_seconds = 0.0  # that the last call of `feed` took

    @property
    def jobs(self) -> set[Job]:
        """Requests that have slots."""
        return set(self._jobs.values())

    @property
    def feeding(self) -> bool:
        """Whether parts of prompts wait to be fed."""
        return bool(self._parts)

    @property
    def running(self) -> bool:
        """Whether some row generates."""
        return self.slots.running > 0

    def can_take(self, queue: deque[Job]) -> bool:
        """Whether there are slots for the request that waits first."""
        return bool(queue) and len(queue[0].rows) <= len(self._free)

    def take(self, queue: deque[Job]) -> None:
        """Gives waiting requests their slots, as far as there are enough for the first of them."""
        while self.can_take(queue):
            job = queue.popleft()
            job.started = time.perf_counter()
            job.slots = [self._next_free() for _ in job.rows]
            self._jobs |= dict.fromkeys(job.rows, job)
            self._parts.extend(self._parts_of(job))

    def _next_free(self) -> int:
        """A slot in the emptiest part of the batch: a step costs as many rows as the fullest part has, of each."""
        part = self.slots.shapes.part
        free = Counter(map(part, self._free))
        slot = max(self._free, key=lambda slot: free[part(slot)])
        self._free.remove(slot)
        return slot

    def _parts_of(self, job: Job) -> list[Part]:
        first, length = job.slots[0], len(job.request.prompt)
        if length <= self.slots.shapes.short:
            return [Part(row, 0, slot, slot) for row, slot in zip(job.rows, job.slots, strict=True)]
        *starts, last = range(0, length, self.slots.shapes.chunk)
        parts = [Part(job.rows[0], start, first, first) for start in starts]
        return parts + [Part(row, last, first, slot) for row, slot in zip(job.rows, job.slots, strict=True)]

    def drop_cancelled(self) -> None:
        """Takes the slots from requests that nobody waits for any more."""
        for job in [job for job in self.jobs if job.cancelled]:
            self.give_up(job, None)

    def give_up(self, job: Job, error: EngineError | None) -> None:
        """Ends a request that has slots, because of `error` or because nobody waits for it."""
        self._parts = deque(part for part in self._parts if self._jobs[part.row] is not job)
        for row, slot in zip(job.rows, job.slots, strict=True):
            if row in self._jobs:
                self._release(row, slot)
        job.mailbox.end(error)
        self._told.add(job.mailbox)
        self.metrics.finish(job, "abort")

    def feed(self) -> None:
        """Feeds the next part of a prompt, or several if they are short."""
        began = time.perf_counter()
        self._first_call |= not self.running
        parts = [self._parts.popleft()]
        touched = {parts[0].slot}
        while self._parts and len(parts) < self.slots.group_size(parts[0]):
            part = self._parts[0]
            # One call reads what was there before it, so no part may build on another of its call.
            if self.slots.is_short(part) != self.slots.is_short(parts[0]) or {part.slot, part.source} & touched:
                break
            parts.append(self._parts.popleft())
            touched.add(part.slot)
        output, rows = self.slots.feed(parts)
        now = time.perf_counter()
        self.feed_seconds = now - began
        self.metrics.add_expert_rows(rows)
        for place, part in enumerate(parts):
            if part.source == part.slot:
                left = len(part.row.request.prompt) - part.start
                self.metrics.prompt_tokens.inc(min(left, self.slots.shapes.chunk))
            scores = output.scores and _scores(output.scores, (place,))
            experts = None if output.experts is None else np.asarray(output.experts)[place][None]
            self._deliver(part.row, np.asarray(output.token)[place][None], scores, experts, now)

    def start(self, ahead: int = 0) -> Call:
        """Has the devices take some steps for every row, as many as should take CHUNK_SECONDS; does not wait for them.

        ahead: how many tokens of every row the devices have made that were not handed out yet.
        """
        seconds = SHARED_SECONDS if self._parts or self._first_call else CHUNK_SECONDS
        self._first_call = False
        rows = {slot: row for slot, row in enumerate(self.slots.rows) if row is not None}
        kind = (max(level_of(row.request.params) for row in rows.values()), self.slots.rows_per_step)
        known = self._step_seconds.get(kind)
        longest = max(row.request.params.max_tokens - len(row.tokens) for row in rows.values()) - ahead
        wanted = 1 if known is None else max(1, min(STEPS_PER_CALL, longest, int(seconds / known)))
        began = time.perf_counter()
        slots, generated = self.slots.generate(wanted, ahead)
        return Call(rows, slots, generated, kind, began)

    def finish(self, call: Call, undisturbed: Callable[[], bool]) -> Call | None:
        """Waits for a call, and hands out what it made while the devices work on the next one.

        The next call is made first only where it is the one that would be made afterwards: when no row can have ended,
        and nothing else is to be done between the two (`undisturbed`, and no prompt is being fed). What requests get,
        and how long a new one waits, are then the same in either order.

        Returns:
            The next call, or None if there is none yet.
        """
        generated: Generated = jax.device_get(call.generated)
        now, taken = time.perf_counter(), int(generated.taken)
        assert taken > 0, "no row is active on the devices, yet some are unfinished here"
        measured, known = (now - call.began) / taken, self._step_seconds.get(call.kind)
        self._step_seconds[call.kind] = measured if known is None else 0.5 * (known + measured)
        tokens, outputs = np.asarray(generated.outputs.token)[:taken], generated.outputs
        places = {place: call.rows[slot] for place, slot in enumerate(call.slots) if slot in call.rows}
        ended = any(_may_have_ended(row, tokens[:, place]) for place, row in places.items())
        following = None if self._parts or ended or not undisturbed() else self.start(ahead=taken)
        self.metrics.add_expert_rows(np.asarray(generated.rows))
        for place, row in places.items():
            scores = None
            if outputs.scores is not None and row.request.params.logprobs is not None:
                scores = [one for step in range(taken) for one in _scores(outputs.scores, (step, place))]
            chosen = None if outputs.experts is None else np.asarray(outputs.experts)[:taken, place]
            self._deliver(row, tokens[:, place], scores, chosen, now)
        self.flush()
        return following

    def flush(self) -> None:
        """Wakes everybody who got something, and shows how full the server is."""
        wake(self._told)
        self._told.clear()
        self.metrics.running.set(len(self.jobs))
        shapes = self.slots.shapes
        self.metrics.cache_use.set(self.slots.cached_tokens / (shapes.batch * shapes.length))

    def _deliver(
        self, row: Row, tokens: np.ndarray, scores: list[TokenScores] | None, experts: np.ndarray | None, now: float
    ) -> None:
        job = self._jobs[row]
        first, count_before = job.first_token is None, len(row.tokens)
        delta = push(job, row, tokens, scores, experts, now)
        if delta is None:
            return
        self._told.add(job.mailbox)
        count = len(delta.token_ids)
        self.metrics.generation_tokens.inc(count)
        if first:
            job.first_token = now
            self.metrics.ttft.observe(now - job.arrived)
        if count_before and job.last_token is not None:
            self.metrics.observe_tokens(count, now - job.last_token)
        if row.finish_reason is not None:
            self._release(row, job.slots[row.output])
        if job.finished:
            job.mailbox.end()
            job.last_token = now
            self.metrics.finish(job, delta.finish_reason or "length")
        job.last_token = now

    def _release(self, row: Row, slot: int) -> None:
        del self._jobs[row]
        self.slots.release(slot)
        self._free.append(slot)


def _scores(scores: TokenScores, at: tuple[int, ...]) -> list[TokenScores]:
    """The scores of one place, as a list of one."""
    return [
        TokenScores(
            logprob=scores.logprob[at],
            rank=scores.rank[at],
            best_ids=scores.best_ids[at],
            best_logprobs=scores.best_logprobs[at],
        )
    ]


def _may_have_ended(row: Row, tokens: np.ndarray) -> bool:
    """Whether these next tokens [steps] of a row may end it; stop strings are only found in its text."""
    request, last = row.request, int(tokens[-1])
    ended = last < 0 or last in request.stop_ids or len(row.tokens) + len(tokens) >= request.params.max_tokens
    return ended or bool(request.params.stop)
