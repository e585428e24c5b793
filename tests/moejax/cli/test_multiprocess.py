"""Two processes for real, over Gloo: what they print, and how the one ends when the other does."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LOOP = ("tests.moejax.cli.psum_loop", "loop")
SECONDS = 120  # for anything that is expected to happen
MINUTE = 60  # in which a process must have ended after another did
JOIN = ("--join-seconds", "3")

PEER_ENDED = (
    "error: another process of this run ended, or cannot be reached any more: see its error, then start all of them "
    "again\n"
)
NOT_TOGETHER = (
    "error: the processes of this run did not find each other in time: start all of them at about the same time, each "
    "with its own --process-id and the same --coordinator-address and --num-processes\n"
)


@dataclass(frozen=True)
class Ended:
    """What a process left."""

    status: int
    out: str
    err: str


Process = subprocess.Popen[str]
Start = Callable[..., Process]


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


@pytest.fixture
def start(port: int) -> Iterator[Start]:
    """`start(1, ...)` starts process 1 of 2, with 4 simulated devices; what still runs after the test is killed."""
    with ExitStack() as running:

        def start(
            process_id: int,
            *flags: str,
            num_processes: int = 2,
            stdin: int = subprocess.DEVNULL,
            command: Sequence[str] = LOOP,
        ) -> Process:
            address = f"127.0.0.1:{port}"
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    *command,
                    "--coordinator-address",
                    address,
                    "--num-processes",
                    str(num_processes),
                ]
                + ["--process-id", str(process_id), "--simulate-devices", "4", *flags],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            running.enter_context(process)
            running.callback(process.kill)
            return process

        yield start


def end(process: Process, seconds: float = SECONDS) -> Ended:
    out, err = process.communicate(timeout=seconds)
    return Ended(process.returncode, out, err)


def read_to(process: Process, line: str) -> str:
    """What process 0 prints, up to a line."""
    assert process.stdout is not None
    read = ""
    while not read.endswith(f"{line}\n"):
        more = process.stdout.readline()
        assert more, f"process 0 ended before it printed {line!r}"
        read += more
    return read


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
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} is still there")


def test_only_process_0_prints(start: Start) -> None:
    first, second = start(0), start(1)
    expected = "joined\n2 processes, 8 devices\ncompiling\nlooping\ndone\n"
    assert end(first) == Ended(0, expected, "a remark\nwarning: a warning\n")
    assert end(second) == Ended(0, "", "")


def test_stdin_reaches_every_process(start: Start) -> None:
    processes = [start(id, "--read-stdin", stdin=subprocess.PIPE) for id in (0, 1)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("from stdin\n")
        process.stdin.close()
        process.stdin = None  # communicate() would flush it
    first, second = map(end, processes)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert "from stdin\n" in first.out


@pytest.mark.parametrize("late", [0, 1])
def test_the_first_to_finish_waits_for_the_others(start: Start, late: int) -> None:
    processes = [start(id, "--late", str(late)) for id in (0, 1)]
    assert [end(process).status for process in processes] == [0, 0]


@pytest.mark.parametrize("killed", [0, 1], ids=["coordinator", "worker"])
@pytest.mark.parametrize(
    ("phase", "flags"),
    [
        ("joined", ("--linger", "3")),
        ("compiling", ("--unrolled", "400")),
        ("looping", ("--seconds", "60")),
        ("done", ("--late", "1")),
    ],
    ids=["joined", "compiling", "looping", "ending"],
)
def test_killed_process_ends_the_other(start: Start, killed: int, phase: str, flags: Sequence[str]) -> None:
    processes = [start(id, *flags) for id in (0, 1)]
    children = [child_of(process) for process in processes]
    read_to(processes[0], phase)
    time.sleep(0.5)
    assert [process.poll() for process in processes] == [None, None]
    processes[killed].kill()
    survivor = end(processes[1 - killed], MINUTE)
    assert survivor.status == 2
    assert survivor.err.splitlines(keepends=True)[-1] == PEER_ENDED
    remarks = 2 if killed == 1 and phase != "joined" else 0  # of process 0
    assert len(survivor.err.splitlines()) == remarks + 1
    for child in children:
        await_end(child)


@pytest.mark.parametrize("failing", [0, 1])
def test_error_of_one_is_told_by_it_and_ends_the_other(start: Start, failing: int) -> None:
    processes = [start(id, "--fail-in", str(failing)) for id in (0, 1)]
    ended = [end(process, MINUTE) for process in processes]
    assert [one.status for one in ended] == [2, 2]
    assert ended[failing].err.endswith("error: an error of one process\n")
    assert ended[1 - failing].err.endswith(PEER_ENDED)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_parent_and_child(start: Start, number: signal.Signals, status: int) -> None:
    processes = [start(id, "--seconds", "60") for id in (0, 1)]
    read_to(processes[0], "looping")
    children = [child_of(process) for process in processes]
    processes[0].send_signal(number)
    first = end(processes[0], 5)
    assert (first.status, first.err) == (status, "a remark\nwarning: a warning\n")
    assert end(processes[1], MINUTE).err == PEER_ENDED
    for child in children:
        await_end(child)


@pytest.mark.parametrize("id", [0, 1], ids=["no worker", "no coordinator"])
def test_process_that_stays_alone_gives_up(start: Start, port: int, id: int) -> None:
    alone = end(start(id, *JOIN))
    assert (alone.status, alone.out) == (2, "")
    assert alone.err == (
        f"error: no process 0 listens at --coordinator-address 127.0.0.1:{port} (Connection refused), tried for 3 s; "
        "start it on that host, and check the address\n"
        if id
        else NOT_TOGETHER
    )


def test_two_processes_with_the_same_id(start: Start) -> None:
    first, second, third = (start(id, "--join-seconds", "10", num_processes=3) for id in (0, 1, 1))
    one, other = sorted(end(process).err for process in (second, third))
    assert one == (
        "error: another process of this run has the same --process-id: give each its own, and start all of them again\n"
    )
    assert {other, end(first).err} <= {NOT_TOGETHER, PEER_ENDED}


def test_more_processes_than_process_0_expects(start: Start) -> None:
    first, third = start(0, *JOIN), start(2, *JOIN, num_processes=3)
    assert end(third).err == (
        "error: process 0 of this run expects no process with this --process-id: give every process the same "
        "--num-processes\n"
    )
    assert end(first).err == NOT_TOGETHER


def test_numbers_of_processes_that_differ(start: Start) -> None:
    first, second = start(0), start(1, num_processes=3)
    assert end(second).err == (
        "error: this process was given --num-processes 3, process 0 was given 2; start all of them again with the same "
        "number\n"
    )
    assert end(first, MINUTE).err.endswith(PEER_ENDED)


def test_port_that_is_in_use(start: Start, port: int) -> None:
    with socket.create_server(("", port)):
        assert end(start(0)).err == (
            f"error: process 0 cannot listen on port {port} of --coordinator-address (Address already in use); choose "
            "another port, for every process\n"
        )


def test_distributed_without_a_cluster() -> None:
    env = {name: value for name, value in os.environ.items() if not re.match("SLURM|OMPI|KUBERNETES|JAX_COORD", name)}
    done = subprocess.run(
        [sys.executable, "-m", *LOOP, "--distributed"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=ROOT,
        env=env,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --distributed found no cluster (Slurm, Open MPI, Kubernetes): coordinator_address should be defined. "
        "Give --coordinator-address, --num-processes and --process-id instead\n"
    )


def test_distributed_on_slurm(port: int) -> None:
    variables = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
    flags = ("--distributed", "--simulate-devices", "2")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *LOOP, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ
            | variables
            | {"SLURM_PROCID": str(id), "SLURM_LOCALID": str(id), "JAX_COORDINATOR_PORT": str(port)},
        )
        for id in (0, 1)
    ]
    first, second = map(end, processes)
    assert first.out.startswith("2 processes, 4 devices\n"), first.err
    assert (first.status, second) == (0, Ended(0, "", ""))


def test_process_1_is_silent_on_a_terminal(port: int) -> None:
    ours, theirs = pty.openpty()
    flags = ("decode", "nowhere", "--token-ids", "1", "--coordinator-address", f"127.0.0.1:{port}")
    flags += ("--num-processes", "2", "--process-id", "1")
    env = os.environ | {"TERM": "xterm", "NO_COLOR": ""}
    # It fails while it waits for process 0, behind the progress that process 0 would show.
    code = "from moejax.cli import main, rendezvous; rendezvous.JOIN_SECONDS = 1; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *flags], stderr=theirs, cwd=ROOT, env=env)
    os.close(theirs)
    assert process.wait(timeout=SECONDS) == 2
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert shown.startswith("\x1b[1;31merror:\x1b[0m no process 0 listens")
    assert shown.count("\n") == 1


def test_debug_shows_what_c_writes(start: Start) -> None:
    processes = [start(id, "--fail-in", "0", "--debug") for id in (0, 1)]
    end(processes[0])
    second = end(processes[1], MINUTE)
    assert second.out == ""
    assert "[Gloo] Rank " in second.err
    assert "*** Check failure stack trace: ***" in second.err
    assert second.err.endswith(PEER_ENDED)


def test_crash_of_unknown_cause_shows_what_c_wrote() -> None:
    code = (
        "import ctypes, os\n"
        "from moejax.cli import main, processes\n"
        "import moejax.cli.app\n"
        "def run(_):\n"
        "    processes.run_below_parent(debug=False)\n"
        "    os.write(2, b'what C++ wrote\\n')\n"
        "    ctypes.string_at(0)\n"
        "def report(arguments):\n"
        "    try: return run(arguments)\n"
        "    except processes.typer.Exit as ended: return ended.exit_code\n"
        "moejax.cli.app.run = report\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == (
        "what C++ wrote\nerror: this process was ended by SIGSEGV; start all processes of this run again\n"
    )
