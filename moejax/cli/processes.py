"""One of several processes of a run: a thin parent, without JAX, around the process that computes.

When another process of a run ends, JAX aborts this one from a thread of its C++ runtime: no Python code can say why,
and what the user sees is a stack trace. So the command runs as a child of itself, and the parent, which outlives it,
says in one line what happened. Both are bound together: the parent passes signals on, a child without a parent ends.
"""

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import TextIO

import typer

from moejax.cli import console

FAILED = 2
KEPT_BYTES = 65_536  # of what C++ writes: an abort's reason and its trace take 5,000

# How the child gets its two pipes, "LIFELINE CAPTURE": one that ends with the parent, one for what C++ writes.
_DESCRIPTORS = "MOEJAX_CHILD_DESCRIPTORS"

PEER_ENDED = (
    "another process of this run ended, or cannot be reached any more: see its error, then start all of them again"
)
# How Gloo fails where the other end of a connection is gone. It may tell before JAX's runtime does, by an exception.
PEER_GONE = re.compile(r"Gloo .*(?:closed by peer|reset by peer|Broken pipe|Connection refused)")

# What JAX's runtime writes before it ends the process -> what that means to the user. The first that is found counts.
_ENDINGS: Mapping[str, str] = {
    r"Unexpected task registered": (
        "process 0 of this run expects no process with this --process-id: give every process the same --num-processes"
    ),
    r"newer incarnation": (
        "another process of this run has the same --process-id: give each its own, and start all of them again"
    ),
    r"Failed to add port": (
        "the port of --coordinator-address is in use on this machine: choose another one, for every process"
    ),
    r"(?s)DEADLINE_EXCEEDED.*RegisterTask": (
        "the processes of this run did not find each other in time: start all of them at about the same time, each "
        "with its own --process-id and the same --coordinator-address and --num-processes"
    ),
    r"JAX distributed service detected fatal errors": PEER_ENDED,
}


def run_below_parent(*, debug: bool) -> None:
    """Starts this command line again as a child and ends with it; in that child, returns at once.

    To be called before the command reads its standard input. With `debug`, what C++ writes is shown as it comes.

    Raises:
        typer.Exit: in the parent, with the exit code of the child, when it has ended.
    """
    if (descriptors := os.environ.pop(_DESCRIPTORS, None)) is None:
        raise typer.Exit(_supervise(debug=debug))
    lifeline, capture = map(int, descriptors.split())
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    _keep_streams_for_python(capture)


def _supervise(*, debug: bool) -> int:
    """The parent: runs the child to its end, and returns the exit code of this command."""
    lifeline, held_by_parent = os.pipe()
    output, capture = os.pipe()
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, _DESCRIPTORS: f"{lifeline} {capture}"},
        pass_fds=(lifeline, capture),
    )
    os.close(lifeline)
    os.close(capture)
    _pass_signals_to(child)
    written = _read_to_end(output, show=debug)
    status = child.wait()
    os.close(held_by_parent)
    if status >= 0:
        return status
    if -status in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # somebody wanted it to end
        return 128 - status
    console.error(_explain(-status, written, shown=debug))
    return FAILED


def _explain(number: int, written: bytes, *, shown: bool) -> str:
    """Why a signal ended the child, which wrote `written`; shows that where it is the only explanation there is."""
    text = written.decode(errors="replace")
    for pattern, meaning in _ENDINGS.items():
        if re.search(pattern, text):
            return meaning
    if not shown:
        sys.stderr.write(text)
    hint = "; most often its memory ran out" if number == signal.SIGKILL else ""
    return f"this process was ended by {signal.Signals(number).name}{hint}; start all processes of this run again"


def _pass_signals_to(child: subprocess.Popen[bytes]) -> None:
    """Makes the child decide what Ctrl-C and SIGTERM do; the parent ends when it does."""
    signal.set_wakeup_fd(-1)  # the command line's own thread would end the parent at once
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: child.send_signal(number))


def _read_to_end(descriptor: int, *, show: bool) -> bytes:
    """The last KEPT_BYTES of what is written to a pipe until nobody has it open any more."""
    kept = b""
    while read := os.read(descriptor, KEPT_BYTES):
        kept = (kept + read)[-KEPT_BYTES:]
        if show:
            sys.stderr.write(read.decode(errors="replace"))
            sys.stderr.flush()
    return kept


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns when the parent, which writes nothing, is gone
    os._exit(FAILED)


def _keep_streams_for_python(capture: int) -> None:
    """Leaves stdout and stderr to Python alone; what C++ writes to them goes to `capture`.

    C++ writes the trace of an abort to stderr, and Gloo its greetings to stdout, into the text.
    """
    sys.stdout, sys.stderr = _moved(sys.stdout), _moved(sys.stderr)
    for standard in (1, 2):
        os.dup2(capture, standard)
    os.close(capture)


def _moved(stream: TextIO) -> TextIO:
    """A stream that writes where `stream` does, through a descriptor of its own."""
    stream.flush()
    errors = stream.errors or "strict"
    return io.TextIOWrapper(
        os.fdopen(os.dup(stream.fileno()), "wb"),
        encoding=stream.encoding,
        errors=errors,
        line_buffering=stream.line_buffering if isinstance(stream, io.TextIOWrapper) else False,
    )
