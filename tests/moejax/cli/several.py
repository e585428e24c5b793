"""Commands that run as several processes, for tests: to start, to follow and to end them."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LOOP = ("tests.moejax.cli.psum_loop", "loop")
DECODE = ("tests.moejax.cli.patient", "decode", "demo")
SECONDS = 300  # for anything that is expected to happen, with the start of Python and JAX on a busy machine
MINUTE = 60  # in which a process must have ended after another did
LONG = "600"  # seconds that a process would go on if nothing ended it

PEER_ENDED = (
    "error: another process of this run ended, or cannot be reached any more: see its error, then start all of them "
    "again\n"
)
NOT_TOGETHER = (
    "error: the processes of this run did not find each other in time: start all of them at about the same time, each "
    "with its own --process-id and the same --coordinator-address and --num-processes\n"
)

Process = subprocess.Popen[str]


@dataclass(frozen=True)
class Ended:
    """What a process left."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Starter:
    """Starts processes of one run, with 4 simulated devices each; what still runs after the test is killed."""

    port: int
    running: ExitStack

    def __call__(
        self,
        process_id: int,
        *flags: str,
        num_processes: int = 2,
        stdin: int = subprocess.DEVNULL,
        command: Sequence[str] = LOOP,
    ) -> Process:
        own = ["--coordinator-address", f"127.0.0.1:{self.port}", "--num-processes", str(num_processes)]
        own += ["--process-id", str(process_id), "--simulate-devices", "4"]
        process = subprocess.Popen(
            [sys.executable, "-m", *command, *own, *flags],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.running.enter_context(process)
        self.running.callback(process.kill)
        return process


def end(process: Process, seconds: float = SECONDS) -> Ended:
    out, err = process.communicate(timeout=seconds)
    return Ended(process.returncode, out, err)


def first_to_end(*processes: Process) -> Process:
    """One that has ended, when one has."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for process in processes:
            if process.poll() is not None:
                return process
        time.sleep(0.05)
    raise AssertionError("no process ends")


def read_to(process: Process, line: str) -> str:
    """What process 0 prints, up to a line."""
    assert process.stdout is not None
    read = ""
    with _ended_by_and_by(process):
        while not read.endswith(f"{line}\n"):
            more = process.stdout.readline()
            assert more, f"process 0 printed {read!r} and ended before {line!r}: {end(process).err}"
            read += more
    return read


def read_one(process: Process) -> str:
    """The first character that process 0 prints."""
    assert process.stdout is not None
    with _ended_by_and_by(process):
        read = process.stdout.read(1)
        assert read, f"process 0 ended and printed nothing: {end(process).err}"
    return read


@contextmanager
def _ended_by_and_by(process: Process) -> Iterator[None]:
    """Kills a process that keeps its reader waiting for too long: a failure, where there would be no end."""
    waiting = threading.Timer(SECONDS, process.kill)
    waiting.start()
    try:
        yield
    finally:
        waiting.cancel()


def await_listener(process: Process, port: int) -> None:
    """Returns when process 0 listens for the others."""
    deadline = time.monotonic() + SECONDS
    while True:
        assert process.poll() is None, end(process).err
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, f"nobody listens on port {port}"
            time.sleep(0.05)


def child_of(process: Process) -> int:
    """The process that computes, below the parent that was started."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if children := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            return int(children[0])
        time.sleep(0.01)
    raise AssertionError("the parent has no child")


def await_end(pid: int) -> None:
    """Returns when a process has ended; a zombie has."""
    deadline = time.monotonic() + MINUTE
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} is still there")
