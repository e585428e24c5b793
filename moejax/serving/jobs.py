"""A request on its way through the engine, and the messages of the engine to whoever waits for it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from moejax.decoding.requests import Request
from moejax.decoding.results import TokenLogprobs
from moejax.decoding.sequences import NewTokens, Sequence, SequenceGroup


class EngineError(Exception):
    """The engine cannot answer, for the reason in the message: it is loading, ending, or has failed."""


class RequestFailed(Exception):
    """One request cannot be answered, for the reason in the message. Others can."""


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
        self._error: EngineError | RequestFailed | None = None

    # --- the engine's side ---
    def put(self, delta: Delta) -> None:
        """Adds a delta; the reader learns of it by `wake`."""
        with self._lock:
            self._deltas.append(delta)

    def end(self, error: EngineError | RequestFailed | None = None) -> None:
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
            RequestFailed: when it could not be answered.
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


@dataclass(frozen=True, kw_only=True)
class Echo:
    """That the prompt is part of the answer.

    text: of the prompt.  alone: whether nothing else is, since no tokens were asked for.
    """

    text: str
    alone: bool


class Answerable(Protocol):
    """What an answer is made of: the fields of `ServedRequest` of the same names."""

    @property
    def group(self) -> SequenceGroup: ...
    @property
    def place(self) -> int: ...
    @property
    def echo(self) -> Echo | None: ...
    @property
    def request(self) -> Request: ...
    @property
    def sequences(self) -> list[Sequence]: ...
    @property
    def generated(self) -> int: ...


@dataclass(kw_only=True, eq=False)
class ServedRequest:
    """A request and whoever waits for it.

    group: its sequences, one per output.  place: of its prompt in what was asked.
    echo: whether the prompt is part of the answer.  cancelled: set by whoever no longer wants it, read by the engine.
    Times are of `time.perf_counter`, None until they happen; `started`: when it left the queue.
    """

    group: SequenceGroup
    mailbox: Mailbox
    place: int = 0
    echo: Echo | None = None
    arrived: float = field(default_factory=time.perf_counter)
    cancelled: bool = False
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    @property
    def request(self) -> Request:
        return self.group.request

    @property
    def sequences(self) -> list[Sequence]:
        return self.group.sequences

    @property
    def finished(self) -> bool:
        return self.group.finished

    @property
    def generated(self) -> int:
        """Tokens of all outputs."""
        return self.group.generated


def make_delta(job: ServedRequest, gained: NewTokens, now: float) -> Delta:
    """What a reader is told of tokens that came at `now`."""
    sequence, events = gained.sequence, gained.events
    logprobs = [event.logprob for event in events if event.logprob is not None]
    return Delta(
        output=sequence.output,
        texts=[event.text for event in events],
        token_ids=sequence.tokens[len(sequence.tokens) - len(events) :],
        logprobs=logprobs if job.request.params.logprobs is not None else None,
        experts=gained.experts,
        seconds=now - job.arrived,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
    )
