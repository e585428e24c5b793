"""The server's end of the baseline's process: started for the first race, ended with the server or when idle."""

import asyncio
import dataclasses
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from typing import Any

from moejax.serving.baseline import Choice, Setup, Task

IDLE_SECONDS = 300.0  # after the last race; until then the next one need not wait for loading
END_SECONDS = 5.0  # for the process to end by itself


class BaselineFailed(Exception):
    """The baseline could not be started, or failed while it ran; the message says why."""


class BaselineBusy(Exception):
    """Another race is being run."""


class BaselineProcess:
    """At most one process, in which one task runs at a time. All methods are for the event loop's thread."""

    def __init__(self, choice: Choice, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self.choice = choice
        self.description = ""
        self._idle_seconds = idle_seconds
        self._process: Process | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self._taken = False
        self._runs = 0

    @property
    def pid(self) -> int | None:
        """Of the running process, if there is one."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def reserve(self) -> None:
        """Takes the process for one race, until `release`.

        Raises:
            BaselineBusy: when another race has it.
        """
        if self._taken:
            raise BaselineBusy
        self._taken = True
        if self._idle is not None:
            self._idle.cancel()

    def release(self) -> None:
        """Gives the process back. After a while without a race it ends."""
        self._taken = False
        self._idle = asyncio.get_running_loop().call_later(self._idle_seconds, self._end_idle)

    async def start(self, *, dtype: str, platform: str) -> None:
        """Starts the process and waits until it is loaded and warm; at once if it is. Arguments as in `Setup`.

        Raises:
            BaselineFailed: when it cannot be loaded.
        """
        if self.pid is not None:
            return
        setup = Setup(kind=self.choice.kind, source=self.choice.source, dtype=dtype, platform=platform)
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "moejax.serving.baseline_worker"),
            stdin=PIPE,
            stdout=PIPE,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the server, which ends this process itself
        )
        try:
            await self._send(process, dataclasses.asdict(setup))
            self.description = (await self._reply(process))["ready"]
        except BaseException:  # also when the client goes away meanwhile: a half-started process is of no use
            await self.close()
            raise

    async def run(self, task: Task) -> AsyncGenerator[list[tuple[int, float]], None]:
        """Yields tokens, some at a time, each with the seconds since the task came to the process. Closing it ends the
        run.

        Raises:
            BaselineFailed: when the run fails or the process ends.
        """
        process = self._process
        assert process is not None, "start() first"
        self._runs += 1
        await self._send(process, {"run": self._runs, "task": dataclasses.asdict(task)})
        over = False
        try:
            while True:
                reply = await self._reply(process)
                if "done" in reply:
                    over = True
                    return
                yield list(zip(reply["tokens"], reply["times"], strict=True))
        except BaselineFailed:
            over = True
            raise
        finally:
            if not over:
                await self._send(process, {"cancel": self._runs})
                while "done" not in await self._reply(process):  # so that the next run's replies are its own
                    pass

    async def close(self) -> None:
        """Ends the process, if there is one, and waits until it has ended."""
        if self._idle is not None:
            self._idle.cancel()
        if self._ending is not None:
            await self._ending
        await self._end()

    def _end_idle(self) -> None:
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()  # at the end of its input it ends
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _send(self, process: Process, message: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{json.dumps(message)}\n".encode())
        try:
            await process.stdin.drain()
        except ConnectionError as error:
            raise BaselineFailed(await self._how_it_ended(process)) from error

    async def _reply(self, process: Process) -> dict[str, Any]:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise BaselineFailed(await self._how_it_ended(process))
        reply = json.loads(line)
        if "error" in reply:
            raise BaselineFailed(f"the baseline ({self.choice.name}) failed: {reply['error']}")
        return reply

    async def _how_it_ended(self, process: Process) -> str:
        code = await process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"the baseline's process ({self.choice.name}) {how}; its own messages are in the server's log"


def _environment() -> dict[str, str]:
    """Of the process: quiet libraries, no network, and no more of a GPU's memory than it needs."""
    return os.environ | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
