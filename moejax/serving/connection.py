"""Connections, which end when their client reads nothing for too long, and what is logged of them."""

import asyncio
import logging
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# How uvicorn's lines about a client's mistake begin, and how that reads for whoever runs the server; "" is left out.
_WORDS = {
    "Invalid HTTP request": "a client sent what is no HTTP request; does its URL begin with https://, not http://?",
    "Unsupported upgrade": "a client asked for a WebSocket or HTTP/2 and was answered in HTTP/1.1, all there is",
    "No supported WebSocket library": "",
}


class Connection(H11Protocol):
    """A connection whose client has to read something every `write_seconds` as long as there is something for it.

    on_stalled: called when a client is given up.
    """

    def __init__(self, *args: Any, write_seconds: float, on_stalled: Callable[[], None], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._write_seconds, self._on_stalled = write_seconds, on_stalled
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # Writing pauses as soon as the system's own buffer is full, so that whatever is left here is watched.
        transport.set_write_buffer_limits(high=0)
        super().connection_made(transport)

    def shutdown(self) -> None:
        """What uvicorn asks of every connection when the end begins."""
        cycle = self.cycle
        if cycle is None or not cycle.more_body or cycle.response_started:
            super().shutdown()
            return
        # uvicorn would wait for the rest of the request, which may never come, and the engine takes no new one anyway.
        self.logger.warning("a client that had sent only a part of its request was cut off")
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_less_than(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop_watching()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _expect_less_than(self, size: int) -> None:
        self._stop_watching()
        self._watch = self.loop.call_later(self._write_seconds, self._check, size)

    def _check(self, size: int) -> None:
        """Ends the connection if no more of it was read than `write_seconds` ago, when `size` bytes were left."""
        left = self.transport.get_write_buffer_size()
        if left < size:
            self._expect_less_than(left)
            return
        self._on_stalled()
        self.transport.abort()  # to close it would wait for the client

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


def connections(*, write_seconds: float, on_stalled: Callable[[], None]) -> Any:
    """What uvicorn calls for every new connection."""
    return partial(Connection, write_seconds=write_seconds, on_stalled=on_stalled)


class LineHandler(logging.Handler):
    """Says what uvicorn logs: in words of ours, one line each, and an exception with its traceback."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            sys.stderr.write(f"{self.format(record)}\n")
        else:
            message = record.getMessage()
            ours = next((words for beginning, words in _WORDS.items() if message.startswith(beginning)), message)
            if ours:
                self._say(ours)


def log_to(say: Callable[[str], None], *, requests: bool) -> None:
    """Hands uvicorn's warnings, and with `requests` a line for every request, to `say`."""
    for name, level in (("uvicorn.error", logging.WARNING), ("uvicorn.access", logging.INFO)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        logger.handlers = [LineHandler(say)] if requests or name != "uvicorn.access" else []


def log_nothing() -> None:
    """For an end at once: all that uvicorn has to log then are the tracebacks of what it cancels."""
    for name in ("uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = [logging.NullHandler()]
