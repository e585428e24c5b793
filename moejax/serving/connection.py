"""Connections, which end when their client reads or sends nothing for too long, or others need their place."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from moejax.serving.errors import ApiError


@dataclass(frozen=True, kw_only=True)
class ConnectionRules:
    """When connections end.

    write_seconds: within which a client has to read something, as long as there is something for it.
    idle_seconds: within which one has to send something, as long as no answer to it is under way.
    most: connections at a time.
    on_stalled: called when a client is given up that reads nothing.
    on_full: called when there are too many, with whether an idle one could be closed for the new one.
    """

    write_seconds: float
    idle_seconds: float
    most: int
    on_stalled: Callable[[], None]
    on_full: Callable[[bool], None]


class Connection(H11Protocol):
    """A connection that obeys rules."""

    def __init__(self, *args: Any, rules: ConnectionRules, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._rules = rules
        self._watch: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._heard = self.idle_since = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # Writing pauses as soon as the system's own buffer is full, so that whatever is left here is watched.
        # asyncio's TLS pauses at its limit and not above it: with 0 it would pause an empty buffer, and never resume.
        encrypted = transport.get_extra_info("sslcontext") is not None
        transport.set_write_buffer_limits(high=1 if encrypted else 0)
        super().connection_made(transport)
        if len(self.connections) > self._rules.most and not self._make_room():
            self._refuse()
        self._expect_something(self._rules.idle_seconds)

    @property
    def idle(self) -> bool:
        """Whether its client is to send something: a request, or the rest of one."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started)

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        super().on_response_complete()

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
        if self._idle is not None:
            self._idle.cancel()
        super().connection_lost(exc)

    # --- too many ---
    def _make_room(self) -> bool:
        """Closes the connection that has been idle for longest; False where all others are being answered."""
        others = cast("set[Connection]", self.connections)
        idle = [one for one in others if one is not self and one.idle and not one.transport.is_closing()]
        self._rules.on_full(bool(idle))
        if not idle:
            return False
        longest = min(idle, key=lambda one: one.idle_since)
        self.connections.discard(longest)
        longest.transport.abort()
        return True

    def _refuse(self) -> None:
        error = ApiError(503, "the server has as many connections as it takes (--max-connections): try again later")
        body = bytes(error.response().body)
        head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
        self.transport.write(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        self.connections.discard(self)
        self.transport.close()

    # --- clients that send nothing ---
    def _expect_something(self, seconds: float) -> None:
        self._idle = self.loop.call_later(seconds, self._check_idle)

    def _check_idle(self) -> None:
        """Ends the connection if its client is to send something, and has sent nothing for `idle_seconds`."""
        left = self._heard + self._rules.idle_seconds - self.loop.time()
        if not self.idle:
            self._expect_something(self._rules.idle_seconds)
        elif left > 0:
            self._expect_something(left)
        else:
            self.transport.abort()

    # --- clients that read nothing ---
    def _expect_less_than(self, size: int) -> None:
        self._stop_watching()
        self._watch = self.loop.call_later(self._rules.write_seconds, self._check, size)

    def _check(self, size: int) -> None:
        """Ends the connection if no more of it was read than `write_seconds` ago, when `size` bytes were left."""
        left = self.transport.get_write_buffer_size()
        if left < size:
            self._expect_less_than(left)
            return
        self._rules.on_stalled()
        self.transport.abort()  # to close it would wait for the client

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


def connections(rules: ConnectionRules) -> Any:
    """What uvicorn calls for every new connection."""
    return partial(Connection, rules=rules)
