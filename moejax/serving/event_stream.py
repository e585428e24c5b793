"""Server-sent events, ended when the client goes away."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import Response

from moejax.serving.errors import json_bytes

DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    """One event that carries JSON."""
    return b"data: " + json_bytes(value) + b"\n\n"


class EventStream(Response):
    """An answer of events.

    Args:
        events: the encoded events.
        on_end: called once, when all was sent, the client has gone, or something failed.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._on_end = events, on_end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await while_connected(self._send_all(send), receive)
        finally:
            self._on_end()

    async def _send_all(self, send: Any) -> None:
        async with contextlib.aclosing(self._events) as events:
            async for part in events:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_connected(work: Any, receive: Any) -> Any:
    """The result of the coroutine `work`, which is cancelled when the client goes away; then None."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
