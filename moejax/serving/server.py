"""Runs the application: the socket, the signals, and a clean end."""

import asyncio
import math
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from moejax.serving.client_log import log_nothing, log_to
from moejax.serving.connection import ConnectionRules, connections
from moejax.serving.engine import STOP_SECONDS, Engine
from moejax.serving.settings import ServerSettings

TICKS = 10  # of uvicorn's in a second
BACKLOG = 2048  # connections that the system keeps until they are accepted
CLOSE_SECONDS = 5  # for clients to read what was sent, after the engine gave up


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket, opened before anything slow is done.

    Raises:
        ValueError: when the port is taken or the host is no address of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"--host {host} cannot be used: {error.strerror or error}") from error
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise ValueError(f"cannot listen on {host} port {port}: {reason}; use another --port") from error
    return listening


def url(host: str, port: int, *, tls: bool = False) -> str:
    """Where a browser on this machine finds the page."""
    name = "localhost" if host in ("", "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{name}:{port}/"


def tell_nobody(loading: bool) -> None:
    """For a server whose start nobody watches."""


class Server(uvicorn.Server):
    """Tells the engine when the end begins, and goes on answering, `/health` above all, until what runs has ended.

    on_loading: told True every second while the engine loads and compiles, then False once.
    """

    def __init__(
        self,
        app: FastAPI,
        engine: Engine,
        settings: ServerSettings,
        say: Callable[[str], None],
        on_loading: Callable[[bool], None] = tell_nobody,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                loop="asyncio",
                http=connections(
                    ConnectionRules(
                        write_seconds=settings.write_seconds,
                        idle_seconds=settings.idle_seconds,
                        most=settings.max_connections,
                        on_stalled=engine.metrics.stalled_clients.inc,
                        on_full=self._on_full,
                    )
                ),
                backlog=1,  # how many are accepted in one go, and so how many errors there are when that fails
                ws="none",
                server_header=False,
                ssl_keyfile=settings.tls and settings.tls.keyfile,
                ssl_certfile=settings.tls and settings.tls.certfile,
            )
        )
        self._engine, self._settings, self._say = engine, settings, say
        self._on_loading, self._loading = on_loading, True
        self._exit_by: float | None = None  # of time.monotonic, once the end has begun
        self._told: set[str] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(BACKLOG)

    async def on_tick(self, counter: int) -> bool:
        was_loading, self._loading = self._loading, self._engine.status == "loading"
        if self._loading and counter % TICKS == 0 or was_loading and not self._loading:
            self._on_loading(self._loading)
        # A model that cannot be loaded will not get better; an engine that fails later keeps saying so in /health.
        if self._engine.status == "dead" and not self._engine.was_ready:
            return True
        return await super().on_tick(counter) and self._has_drained()

    def _has_drained(self) -> bool:
        """Whether nothing runs any more, or it has had its time."""
        running, seconds = self._engine.metrics.now_running(), self._settings.shutdown_seconds
        if self._exit_by is None:
            self._exit_by = time.monotonic() + seconds
            self._engine.drain(seconds)
            if running:
                self._say(f"what runs ({running}) has {seconds:g} s to end; Ctrl-C again ends at once")
        return self.force_exit or not running or time.monotonic() >= self._exit_by

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        left = 0.0 if self._exit_by is None else max(0.0, self._exit_by - time.monotonic())
        self.config.timeout_graceful_shutdown = math.ceil(left) + CLOSE_SECONDS  # for clients that read slowly
        await super().shutdown(sockets)
        if self.force_exit:
            log_nothing()

    def _on_full(self, made_room: bool) -> None:
        """Says once that there are too many connections, and once that some are refused."""
        what = "idle ones are closed" if made_room else "all are busy, so more are refused"
        self._tell_once(f"there are {self._settings.max_connections:,} connections (--max-connections): {what}")

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Says once that no connection can be accepted: asyncio would show a traceback for every attempt."""
        error = context.get("exception")
        if isinstance(error, OSError) and "accept" in context["message"]:
            self._tell_once(f"connections cannot be accepted: {error.strerror}; fewer --max-connections may help")
        else:
            loop.default_exception_handler(context)

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._say(line)


def serve(
    app: FastAPI,
    engine: Engine,
    listening: socket.socket,
    settings: ServerSettings,
    say: Callable[[str], None],
    on_loading: Callable[[bool], None] = tell_nobody,
) -> None:
    """Serves until SIGTERM or SIGINT; answers that are under way then have `settings.shutdown_seconds` to end.

    on_loading: told True every second while the engine loads and compiles, then False once.

    Raises:
        Exception: what the engine failed with before it served anything.
    """
    # The command line reads Ctrl-C on its own and ends at once; here it means a clean end. uvicorn puts back what was
    # set before and raises the signals again.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    log_to(say, requests=settings.log_requests)
    Server(app, engine, settings, say, on_loading).run(sockets=[listening])
    engine.stop(STOP_SECONDS)  # again, for uvicorn leaves out the end of the application after a second Ctrl-C
    if engine.error is not None and not engine.was_ready:
        raise engine.error
    finished, given_up = engine.metrics.ended()
    say(f"stopped: {finished:,} requests finished, {given_up:,} given up or cancelled")
