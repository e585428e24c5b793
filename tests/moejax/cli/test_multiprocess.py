"""Two processes for real, over Gloo: what they print, and how the one ends when the other does."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from tests.messages import error_line, says
from tests.moejax.cli.several import (
    LONG,
    LOOP,
    MINUTE,
    NOT_TOGETHER,
    PEER_ENDED,
    ROOT,
    SECONDS,
    Ended,
    Starter,
    await_end,
    await_listener,
    child_of,
    end,
    first_to_end,
    read_to,
)

ALONE = ("--join-seconds", "3")  # for a process that nobody joins
PATIENT = ("--join-seconds", "300", "--heartbeat-seconds", "300")  # where others come late, or an end goes unnoticed
# What is measured in test_multiprocess_decode is the real number. A process has to be silent for as long, on a machine
# that is busy, to be taken for dead.
HEARTBEAT = ("--heartbeat-seconds", "5")


@pytest.mark.parametrize("late", [0, 1])
def test_process_0_prints_and_the_first_to_finish_waits_for_the_others(start: Starter, late: int) -> None:
    processes = [start(id, "--late", str(late), "--read-stdin", stdin=subprocess.PIPE) for id in (0, 1)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("from stdin\n")
        process.stdin.close()
        process.stdin = None  # communicate() would flush it
    expected = "joined\n2 processes, 8 devices\nfrom stdin\ncompiling\nlooping\ndone\n"
    first, second = map(end, processes)
    assert first == Ended(0, expected, "a remark\nwarning: a warning\n")
    assert second == Ended(0, "", "")


@pytest.mark.parametrize("killed", [0, 1], ids=["coordinator", "worker"])
@pytest.mark.parametrize(
    ("phase", "flags"),
    [
        ("joined", ("--linger", LONG)),
        ("compiling", ("--unrolled", "400", "--seconds", LONG)),
        ("done", ("--late", "1", "--late-seconds", LONG)),
    ],
    ids=["joined", "compiling", "ending"],
)
def test_killed_process_ends_the_other(start: Starter, killed: int, phase: str, flags: Sequence[str]) -> None:
    processes = [start(id, *HEARTBEAT, *flags) for id in (0, 1)]
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


def test_error_of_one_is_told_by_it_and_ends_the_other(start: Starter) -> None:
    processes = [start(id, "--fail-in", "1", *HEARTBEAT) for id in (0, 1)]
    first, second = map(end, processes)
    assert second == Ended(2, "", "error: an error of one process\n")
    assert (first.status, first.err) == (2, f"a remark\nwarning: a warning\n{PEER_ENDED}")


def test_debug_shows_what_c_writes(start: Starter) -> None:
    processes = [start(id, "--fail-in", "0", "--debug") for id in (0, 1)]
    first, second = map(end, processes)
    assert (first.status, second.status) == (2, 2)
    assert first.err.endswith("error: an error of one process\n")
    assert second.out == ""
    assert "[Gloo] Rank " in second.err
    assert "*** Check failure stack trace: ***" in second.err
    assert second.err.endswith(PEER_ENDED)


def test_signals_end_parent_and_child(start: Starter) -> None:
    """Process 1 first, whose C++ waits for process 0; then process 0, before it can have noticed."""
    processes = [start(0, *PATIENT, "--linger", LONG), start(1, *PATIENT)]
    read_to(processes[0], "joined")
    children = [child_of(process) for process in processes]
    processes[1].send_signal(signal.SIGINT)
    assert end(processes[1], MINUTE) == Ended(130, "", "")
    processes[0].send_signal(signal.SIGTERM)
    assert end(processes[0], MINUTE) == Ended(143, "", "")
    for child in children:
        await_end(child)


def test_two_processes_with_the_same_id(start: Starter) -> None:
    _, second, third = (start(id, *PATIENT, num_processes=3) for id in (0, 1, 1))
    ended = end(first_to_end(second, third))
    assert (ended.status, ended.out) == (2, "")
    error_line(ended.err, "same --process-id")


def test_process_0_alone(start: Starter) -> None:
    assert end(start(0, *ALONE)) == Ended(2, "", NOT_TOGETHER)


def test_more_processes_than_process_0_expects(start: Starter, port: int) -> None:
    first = start(0, *PATIENT)
    await_listener(first, port)
    error_line(end(start(2, *PATIENT, num_processes=3)).err, "--process-id", "--num-processes")
    assert first.poll() is None, "nor does it end because of one"


def test_numbers_of_processes_that_differ(start: Starter) -> None:
    first, second = start(0, *HEARTBEAT), start(1, *HEARTBEAT, num_processes=3)
    error_line(end(second).err, "--num-processes 3", "2")
    assert end(first, MINUTE).err.endswith(PEER_ENDED)


def test_port_that_is_in_use(start: Starter, port: int) -> None:
    with socket.create_server(("", port)):
        error_line(end(start(0)).err, f"port {port}", "--coordinator-address", "Address already in use")


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
    error_line(done.stderr, "--distributed", "--coordinator-address", "--num-processes", "--process-id")


def test_distributed_on_slurm(port: int) -> None:
    variables = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *LOOP, *PATIENT, "--distributed", "--simulate-devices", "1"],
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
    assert first == Ended(0, "2 processes, 2 devices\ncompiling\nlooping\ndone\n", "a remark\nwarning: a warning\n")
    assert second == Ended(0, "", "")  # not the remark either, although only the cluster knows that this is process 1


def test_process_1_is_silent_on_a_terminal(port: int) -> None:
    ours, theirs = pty.openpty()
    flags = ("decode", "demo", "--token-ids", "1", "--coordinator-address", f"127.0.0.1:{port}")
    flags += ("--num-processes", "2", "--process-id", "1")
    env = os.environ | {"TERM": "xterm", "NO_COLOR": ""}
    # It fails while it waits for process 0, behind the progress that process 0 would show.
    code = "from moejax.cli import main, rendezvous; rendezvous.JOIN_SECONDS = 1; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *flags], stderr=theirs, cwd=ROOT, env=env)
    os.close(theirs)
    assert process.wait(timeout=SECONDS) == 2
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert shown.startswith("\x1b[1;31merror:\x1b[0m ") and shown.endswith("\r\n") and shown.count("\n") == 1
    says(shown, "process 0", f"--coordinator-address 127.0.0.1:{port}", "Connection refused", "1 s")


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
    first, error = done.stderr.splitlines(keepends=True)
    assert first == "what C++ wrote\n"
    error_line(error, "SIGSEGV")
