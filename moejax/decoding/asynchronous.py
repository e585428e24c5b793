"""`adecode`: `decode` for programs with an event loop, which goes on meanwhile.

Everything that takes time runs on one thread, so calls that run at the same time take turns: each has the devices for
one call of a compiled program. Two threads that started programs over a mesh would wait for one another for ever.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar, overload

from moejax.decoding.api import Params, check_finite, prepared, result_of, streamed
from moejax.decoding.engine import DecodeRun
from moejax.decoding.requests import Prompts
from moejax.decoding.results import DecodeEvent, DecodeResult
from moejax.loading import Model

_Item = TypeVar("_Item")
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="moejax-adecode")


@overload
def adecode(
    model: Model, prompts: Prompts, params: Params = None, *, stream: Literal[False] = False, **overrides: Any
) -> Awaitable[list[DecodeResult]]: ...
@overload
def adecode(
    model: Model, prompts: Prompts, params: Params = None, *, stream: Literal[True], **overrides: Any
) -> AsyncIterator[DecodeEvent]: ...
def adecode(
    model: Model, prompts: Prompts, params: Params = None, *, stream: bool = False, **overrides: Any
) -> Awaitable[list[DecodeResult]] | AsyncIterator[DecodeEvent]:
    """`decode` without blocking the event loop: `await adecode(...)`, `async for event in adecode(..., stream=True)`.

    Arguments, results and errors are those of `decode`; errors come when it is awaited, or with the first event. Calls
    may run at the same time; they take turns on the devices. One that is cancelled ends with the program that is
    running. To put many requests into one batch, give them to one call, or run `moejax serve`.
    """
    began = time.perf_counter()

    def make() -> DecodeRun:
        return prepared(model, prompts, params, overrides, stream=stream, began=began)

    return _events(make) if stream else _results(make)


async def _results(make: Callable[[], DecodeRun]) -> list[DecodeResult]:
    run = await _in_thread(make)
    async for gained in _each(run.tokens()):
        check_finite(run.model, gained)
    return [result_of(run, request) for request in run.requests]


async def _events(make: Callable[[], DecodeRun]) -> AsyncIterator[DecodeEvent]:
    run = await _in_thread(make)
    async for event in _each(streamed(run)):
        yield event


async def _each(items: Iterator[_Item]) -> AsyncIterator[_Item]:
    """The items of a generator that runs in the thread; it is closed when nobody wants more."""
    try:
        while (item := await _in_thread(next, items, None)) is not None:
            yield item
    finally:
        # After whatever the thread does now: a generator that runs cannot be closed.
        _THREAD.submit(getattr(items, "close", lambda: None))


async def _in_thread(work: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(_THREAD, work, *args)
