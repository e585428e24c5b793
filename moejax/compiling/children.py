"""Starts a process for each target, which compiles its cases. Imports no JAX."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import groupby
from queue import Queue
from typing import Any

from moejax.compiling.cases import Case

WORKER = "moejax.compiling.worker"


AT_ONCE = 2  # targets; each takes about one core and 2 GB


def compile_all(cases: Sequence[Case], worker: str = WORKER) -> Iterator[dict[str, Any]]:
    """The facts of each case as soon as it is compiled; those of one target come in order.

    Raises:
        RuntimeError: when a program cannot be compiled, with the last that was said of it.
    """
    by_target = [list(group) for _, group in groupby(sorted(cases, key=_target), key=_target)]
    ready: Queue[dict[str, Any] | BaseException | None] = Queue()

    def of_target(group: list[Case]) -> None:
        try:
            for facts in _of_target(group, worker):
                ready.put(facts)
            ready.put(None)
        except BaseException as error:  # raised again by whoever asked
            ready.put(error)

    with ThreadPoolExecutor(max_workers=AT_ONCE) as threads:
        for group in by_target:
            threads.submit(of_target, group)
        unfinished = len(by_target)
        while unfinished:
            one = ready.get()
            if isinstance(one, BaseException):
                threads.shutdown(cancel_futures=True)
                raise one
            if one is None:
                unfinished -= 1
            else:
                yield one


def _target(case: Case) -> str:
    return case.target


def _of_target(cases: Sequence[Case], worker: str) -> Iterator[dict[str, Any]]:
    # Its stderr goes to a file: nobody reads a second pipe while the first one is read.
    with tempfile.TemporaryFile() as errors:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        child = subprocess.Popen(
            [sys.executable, "-m", worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"PYTHONPATH": paths},
            text=True,
        )
        assert child.stdin is not None and child.stdout is not None
        done = 0
        try:
            with child.stdin:
                json.dump([asdict(case) for case in cases], child.stdin)
            for line in child.stdout:
                done += 1
                yield json.loads(line)
            status = child.wait()
        finally:
            child.kill()  # nothing, once it has ended
            child.wait()
            child.stdout.close()
        if status or done < len(cases):
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"{cases[min(done, len(cases) - 1)].title} was not compiled: {said[-1]}")
