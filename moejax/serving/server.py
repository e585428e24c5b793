"""Runs the application: the socket, the signals, and a clean end."""

import signal
import socket

import uvicorn
from fastapi import FastAPI

from moejax.serving.engine import Engine

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


class _Server(uvicorn.Server):
    """Tells the engine when the end begins: uvicorn itself would wait for all answers, however long they are."""

    def __init__(self, config: uvicorn.Config, engine: Engine, shutdown_seconds: float) -> None:
        super().__init__(config)
        self._engine, self._shutdown_seconds = engine, shutdown_seconds

    async def on_tick(self, counter: int) -> bool:
        if self.should_exit:
            self._engine.drain(self._shutdown_seconds)
        # A model that cannot be loaded will not get better; an engine that fails later keeps saying so in /health.
        failed_early = self._engine.status == "dead" and not self._engine.was_ready
        return failed_early or await super().on_tick(counter)


def serve(app: FastAPI, engine: Engine, listening: socket.socket, *, shutdown_seconds: float) -> None:
    """Serves until SIGTERM or SIGINT; answers that are under way then have `shutdown_seconds` to end.

    Raises:
        Exception: what the engine failed with before it served anything.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        loop="asyncio",
        http="h11",
        ws="none",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(shutdown_seconds) + CLOSE_SECONDS,
    )
    # The command line reads Ctrl-C on its own and ends at once; here it means a clean end. uvicorn puts back what was
    # set before and raises the signals again.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    _Server(config, engine, shutdown_seconds).run(sockets=[listening])
    engine.stop()  # again, for uvicorn leaves out the end of the application after a second Ctrl-C
    if engine.error is not None and not engine.was_ready:
        raise engine.error
