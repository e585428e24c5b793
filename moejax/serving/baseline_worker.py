"""The process of a baseline: `python -m moejax.serving.baseline_worker`, started by `baseline_process`.

The first line of its standard input is the `Setup`, as JSON; then come lines {"run": number, "task": ...} and
{"cancel": number of a run}. It answers on standard output with lines {"ready": description}, {"tokens": ids, "times":
seconds since the task came}, {"done": true} and {"error": text}. The process ends when its input does, so it cannot
outlive the server.
"""

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, TextIO

from moejax.serving.baseline import Implementation, Setup, Task

LOADERS = {
    "transformers": "moejax.serving.baseline_transformers",
    "plain": "moejax.serving.baseline_plain",
}
# Between two reports of tokens, as long as a call of the server's decode loop takes. Whoever passes tokens on to a
# browser takes time from the cores that compute them: so the baseline is not disturbed more often than the server.
REPORT_SECONDS = 0.05
WARM_UP = Task(
    prompt=[0, 1, 2],
    stop_ids=(),
    max_tokens=4,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    seed=None,
)
Say = Callable[[dict[str, Any]], None]


class Cancelled(Exception):
    """The server does not want the rest of the run."""


class Inbox:
    """What the server has sent: runs to do, and the latest run that it does not want any more.

    Runs are numbered upwards, so a cancellation that comes when its run has ended means nothing to the next one.
    """

    def __init__(self) -> None:
        self.runs: queue.SimpleQueue[tuple[int, Task]] = queue.SimpleQueue()
        self.cancelled = 0

    def listen(self, lines: TextIO) -> None:
        """Reads until the server has ended, and then ends the process, whatever is being computed."""
        for line in lines:
            message = json.loads(line)
            if "cancel" in message:
                self.cancelled = message["cancel"]
            else:
                self.runs.put((message["run"], Task(**message["task"])))
        os._exit(0)


def main() -> None:
    """Serves tasks until standard input ends."""
    replies = _private_stdout()
    setup = Setup(**json.loads(sys.stdin.readline()))
    inbox = Inbox()
    threading.Thread(target=inbox.listen, args=(sys.stdin,), daemon=True).start()

    def say(reply: dict[str, Any]) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    try:
        implementation: Implementation = import_module(LOADERS[setup.kind]).load(setup)
        implementation.generate(WARM_UP, lambda token: None)  # what runs only once is on nobody's clock
    except Exception as error:  # whatever loading raises is said to whoever waits for the race
        say({"error": _one_line(error)})
        raise
    say({"ready": implementation.description})
    while True:
        run, task = inbox.runs.get()
        _do(implementation, task, lambda run=run: inbox.cancelled >= run, say)


def _do(implementation: Implementation, task: Task, unwanted: Callable[[], bool], say: Say) -> None:
    began, excluded = time.perf_counter(), implementation.excluded_seconds()
    tokens: list[int] = []  # not reported yet
    times: list[float] = []
    reported = -REPORT_SECONDS  # so that the first token is, at once

    def report() -> None:
        if tokens:
            say({"tokens": tokens, "times": times})
            tokens.clear()
            times.clear()

    def emit(token: int) -> None:
        nonlocal reported
        if unwanted():
            raise Cancelled
        tokens.append(token)
        times.append(time.perf_counter() - began - (implementation.excluded_seconds() - excluded))
        if times[-1] - reported >= REPORT_SECONDS:
            reported = times[-1]
            report()

    try:
        implementation.generate(task, emit)
    except Cancelled:
        pass  # said by "done", too: nothing more comes
    except Exception as error:  # a failed run is told, and the process goes on
        say({"error": _one_line(error)})
        return
    report()
    say({"done": True})


def _private_stdout() -> TextIO:
    """Standard output for replies alone; what libraries print goes to standard error."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


if __name__ == "__main__":
    main()
