"""A request on its way through the engine, and the letters that the engine writes to whoever waits for it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

import numpy as np

from moejax.decoding.logprobs import TokenScores
from moejax.decoding.requests import Request
from moejax.decoding.results import TokenLogprobs
from moejax.decoding.rows import Row


class EngineError(Exception):
    """The engine cannot answer, for the reason in the message: it is loading, ending, or has failed."""


class QueueFull(Exception):
    """More requests wait than the server keeps."""


@dataclass(kw_only=True)
class Delta:
    """What one output of a request gained by one call of the engine.

    output: its number, 0 to n - 1.
    texts: what each token released; may be empty.
    logprobs: one entry per token, or None where they were not asked for.
    experts: int16 [tokens, L, A], those that the forward pass behind each token chose; None where not asked for.
    seconds: since the request arrived.  finish_reason, stop_reason: as in `Output`, in an output's last delta.
    """

    output: int
    texts: list[str]
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    experts: np.ndarray | None
    seconds: float
    finish_reason: str | None
    stop_reason: str | int | None

    @property
    def text(self) -> str:
        """What all its tokens released."""
        return "".join(self.texts)


class Mailbox:
    """Deltas from the engine's thread to one coroutine; never holds more than the request's outputs.

    A reader may be slow: what it has not taken waits here, and the engine does not wait for it.

    Args:
        whole: whether its reader can do nothing with a part: it then gets all at the end, and is woken only once.
    """

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._arrived = asyncio.Event()
        self._deltas: list[Delta] = []
        self._ended = False
        self._error: EngineError | None = None

    # --- the engine's side ---
    def put(self, delta: Delta) -> None:
        """Adds a delta; the reader learns of it by `wake`."""
        with self._lock:
            self._deltas.append(delta)

    def end(self, error: EngineError | None = None) -> None:
        """Says that nothing more comes, because all was said or because of `error`."""
        with self._lock:
            self._ended, self._error = True, error

    @property
    def wakes(self) -> bool:
        """Whether its reader has to be woken for what is in it."""
        return self._ended or not self._whole

    # --- the reader's side ---
    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        """Whatever has come since the last time, until everything has.

        Raises:
            EngineError: when the engine gave the request up.
        """
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            with self._lock:
                deltas, self._deltas = self._deltas, []
                ended, error = self._ended, self._error
            if ended:
                self._arrived.set()  # for whoever reads it after this reader
            if deltas:
                yield deltas
            if error is not None:
                raise error
            if ended:
                return


def wake(mailboxes: Iterable[Mailbox]) -> None:
    """Tells the readers that something came, with one call per event loop: each costs a system call."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
    for mailbox in mailboxes:
        if not mailbox.wakes:
            continue
        by_loop.setdefault(mailbox._loop, []).append(mailbox._arrived)
    for loop, events in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set_all, events)
        except RuntimeError:
            if not loop.is_closed():  # a loop that is closed has no readers left
                raise


def _set_all(events: list[asyncio.Event]) -> None:
    for event in events:
        event.set()


@dataclass(kw_only=True, eq=False)
class Job:
    """A request and its outputs.

    rows: one per output.  cancelled: set by whoever no longer wants it, read by the engine.
    slots: where the rows are, from when it left the queue.  Times are of `time.perf_counter`, None until they happen.
    """

    request: Request
    rows: list[Row]
    mailbox: Mailbox
    arrived: float = field(default_factory=time.perf_counter)
    cancelled: bool = False
    slots: list[int] = field(default_factory=list)
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    @property
    def finished(self) -> bool:
        return all(row.finish_reason is not None for row in self.rows)

    @property
    def generated(self) -> int:
        """Tokens of all outputs."""
        return sum(len(row.tokens) for row in self.rows)


def push(
    job: Job, row: Row, tokens: np.ndarray, scores: list[TokenScores] | None, experts: np.ndarray | None, now: float
) -> Delta | None:
    """Gives a row its next tokens (int [steps]; -1 where it was not active) and tells the mailbox; None if there were
    none. Tokens after its end are dropped. `scores`, `experts` [steps, L, A]: of the same steps.
    """
    params = row.request.params
    taken: list[int] = []
    texts: list[str] = []
    logprobs: list[TokenLogprobs] = []
    for step, token in enumerate(tokens.tolist()):
        if token < 0 or row.finish_reason is not None:
            break
        event = row.push(token, None if scores is None else scores[step])
        taken.append(token)
        texts.append(event.text)
        if event.logprob is not None:
            logprobs.append(event.logprob)
    if not taken:
        return None
    delta = Delta(
        output=row.output,
        texts=texts,
        token_ids=taken,
        logprobs=logprobs if params.logprobs is not None else None,
        experts=experts[: len(taken)] if params.return_routed_experts and experts is not None else None,
        seconds=now - job.arrived,
        finish_reason=row.finish_reason,
        stop_reason=row.stop_reason,
    )
    job.mailbox.put(delta)
    return delta
