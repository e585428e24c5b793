"""Work on what a checkpoint's author wrote as code (chat templates, tokenizers), in processes of their own with limits.

Neither Jinja nor the tokenizer libraries can be stopped from inside, and no count of operands bounds what they do. A
process can: the system ends it past its processor time (RLIMIT_CPU, so a busy machine makes no difference) and refuses
it memory (RLIMIT_AS; macOS does not enforce that one). What it prints, a panic's backtrace say, is dropped.

A process belongs to one setup, a template or a tokenizer, keeps it between jobs, and does one job at a time. It costs
about 0.1 s to start and 0.1 ms per job; the few that were used last are kept. It ends with the program that started it.
"""

import atexit
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

Task = Literal["template", "tokenizer"]  # what a process does: `moejax.text.limited_worker.TASKS`

MOST_AT_ONCE = 4  # processes at work; further callers wait
MOST_IDLE = 4
# Not to be reached: a process that neither uses its processor time nor answers.
_PATIENCE = 30.0
_HEADER = 8  # bytes of a message's length


class LimitReached(ValueError):
    """A process was ended at one of its limits, or by itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Limited:
    """A task prepared in processes of its own.

    setup: what to prepare, in JSON's types.  seconds: of processor time to prepare it.  memory: bytes of address space.
    """

    task: Task
    setup: Mapping[str, Any]
    seconds: int
    memory: int

    @cached_property
    def _first_message(self) -> bytes:
        limits = {"task": self.task, "seconds": self.seconds, "memory": self.memory}
        return json.dumps(limits | {"setup": self.setup}).encode()

    @cached_property
    def _key(self) -> str:
        return hashlib.sha256(self._first_message).hexdigest()

    def describe(self) -> Any:
        """What preparing it found out.

        Raises:
          ValueError: what was given cannot be prepared.
          LimitReached: preparing it passed a limit.
        """
        with _at_work:
            process = _take(self)
            _give_back(process)
            return process.description

    def ask(self, job: Any, *, seconds: int) -> Any:
        """The answer to a job of JSON's types, for at most `seconds` of processor time.

        Raises:
          ValueError: the job cannot be done.
          LimitReached: it passed a limit.
        """
        with _at_work:
            process = _take(self)
            answer = process.exchange(json.dumps({"seconds": seconds, "job": job}).encode(), seconds)
            _give_back(process)
        if "refused" in answer:
            raise ValueError(answer["refused"])
        return answer["value"]


class _Process:
    """One process, prepared. Ended at a limit, after a panic and when waiting for it is interrupted."""

    def __init__(self, limited: Limited) -> None:
        self.key, self._memory = limited._key, limited.memory
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)  # finds what this process would import
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "moejax.text.limited_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # a forked child closes its copies of the pipes, and must not send what they still hold
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C in a terminal is for the program, which may still need an answer
        )
        _alive.add(self)
        answer = self.exchange(limited._first_message, limited.seconds)
        if "refused" in answer:
            self.end()
            raise ValueError(answer["refused"])
        self.description = answer["value"]

    def has_ended(self) -> bool:
        """Whether it can be asked nothing more."""
        if self in _alive and self._process.poll() is not None:  # by somebody else
            self.end()
        return self not in _alive

    def exchange(self, message: bytes, seconds: int) -> dict[str, Any]:
        """Sends a message and waits for its answer, a `value` or why it was `refused`."""
        patience = 10 * seconds + _PATIENCE
        try:
            answer = self._sent_and_received(message, time.monotonic() + patience)
        except (EOFError, BrokenPipeError):
            self._process.wait(timeout=_PATIENCE)  # it is ending: by what is still to be learnt
            self.end()
            raise LimitReached(_why_ended(self._process.returncode, seconds, self._memory)) from None
        except TimeoutError:
            self.end()
            raise LimitReached(f"gave no answer in {patience:.0f} s") from None
        except BaseException:
            self.end()
            raise
        if answer.get("damaged"):
            self.end()
        if answer.get("out_of_memory"):
            self.end()
            raise LimitReached(f"needs more than {self._memory >> 20} MB of memory")
        return answer

    def _sent_and_received(self, message: bytes, until: float) -> dict[str, Any]:
        stdin = self._process.stdin
        assert stdin is not None
        unsent = memoryview(len(message).to_bytes(_HEADER, "big") + message)
        while unsent:
            unsent = unsent[stdin.write(unsent) :]
        size = int.from_bytes(self._received(_HEADER, until), "big")
        return json.loads(self._received(size, until))

    def _received(self, size: int, until: float) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        waiting = select.poll()
        waiting.register(stdout, select.POLLIN)
        data = bytearray()
        while len(data) < size:
            if not waiting.poll(max(0.0, until - time.monotonic()) * 1000):
                raise TimeoutError
            part = os.read(stdout.fileno(), min(size - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def end(self) -> None:
        _alive.discard(self)
        self._process.kill()
        self._process.wait()
        self._close()

    def disown(self) -> None:
        """In a forked child: the process is the parent's."""
        self._process.returncode = 0
        self._close()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


def _why_ended(returncode: int | None, seconds: int, memory: int) -> str:
    if returncode == -signal.SIGXCPU:
        return f"takes more than {seconds} s of processor time"
    if returncode in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS):  # how libraries end without memory or stack
        return f"needs more than {memory >> 20} MB of memory, or crashes ({signal.Signals(-returncode).name})"
    return f"ended its process (exit status {returncode})"


_lock = threading.Lock()
_idle: list[_Process] = []  # the one used last at the end
_alive: set[_Process] = set()
_at_work = threading.BoundedSemaphore(MOST_AT_ONCE)


def _take(limited: Limited) -> _Process:
    with _lock:
        for process in [process for process in reversed(_idle) if process.key == limited._key]:
            _idle.remove(process)
            if not process.has_ended():
                return process
    return _Process(limited)


def _give_back(process: _Process) -> None:
    if process.has_ended():
        return
    with _lock:
        _idle.append(process)
        ended = _idle.pop(0) if len(_idle) > MOST_IDLE else None
    if ended is not None:
        ended.end()


def _end_all() -> None:
    for process in list(_alive):
        process.end()


def _after_fork() -> None:
    global _lock, _at_work
    _lock, _at_work = threading.Lock(), threading.BoundedSemaphore(MOST_AT_ONCE)
    for process in _alive:
        process.disown()
    _idle.clear()
    _alive.clear()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_after_fork)
