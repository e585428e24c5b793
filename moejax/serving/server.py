"""Runs the application: the socket, the signals, and a clean end."""

import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from moejax.serving.connection import connections, log_nothing, log_to
from moejax.serving.engine import Engine
from moejax.serving.settings import ServerSettings

TICKS = 10  # of uvicorn's in a second
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
        listening.listen(2048)
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise ValueError(f"cannot listen on {host} port {port}: {reason}; use another --port") from error
    return listening


def url(host: str, port: int) -> str:
    """Where a browser on this machine finds the page."""
    name = "localhost" if host in ("", "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/"


def tell_nobody(loading: bool) -> None:
    """For a server whose start nobody watches."""


class Server(uvicorn.Server):
    """Tells the engine when the end begins: uvicorn itself would wait for all answers, however long they are.

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
                http=connections(write_seconds=settings.write_seconds, on_stalled=engine.metrics.stalled_clients.inc),
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=int(settings.shutdown_seconds) + CLOSE_SECONDS,
            )
        )
        self._engine, self._shutdown_seconds, self._say = engine, settings.shutdown_seconds, say
        self._on_loading, self._loading = on_loading, True

    async def on_tick(self, counter: int) -> bool:
        was_loading, self._loading = self._loading, self._engine.status == "loading"
        if self._loading and counter % TICKS == 0 or was_loading and not self._loading:
            self._on_loading(self._loading)
        if self.should_exit:
            self._engine.drain(self._shutdown_seconds)
            if running := self._engine.metrics.now_running():
                self._say(f"what runs ({running}) has {self._shutdown_seconds:g} s to end; Ctrl-C again ends at once")
        # A model that cannot be loaded will not get better; an engine that fails later keeps saying so in /health.
        failed_early = self._engine.status == "dead" and not self._engine.was_ready
        return failed_early or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:
            log_nothing()


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
    engine.stop()  # again, for uvicorn leaves out the end of the application after a second Ctrl-C
    if engine.error is not None and not engine.was_ready:
        raise engine.error
    finished, given_up = engine.metrics.ended()
    say(f"stopped: {finished:,} requests finished, {given_up:,} given up or cancelled")
