"""The process that `moejax.text.limited` starts: prepares one task, then answers jobs, each within its limits."""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, BinaryIO

# What `prepare` of each module makes of a setup: what it found out, and the function that does jobs.
TASKS = {"template": "moejax.text.template", "tokenizer": "moejax.text.encoder"}

_HEADER = 8


def main() -> None:
    """Answers messages until there are no more."""
    stdin = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    first = _read(stdin)
    if first is None:
        return
    if sys.platform != "darwin":  # which refuses a limit below what its libraries have mapped, and enforces none
        _limit(resource.RLIMIT_AS, first["memory"])
    _limit_time(first["seconds"])
    prepared: list[Callable[[Any], Any]] = []

    def prepare() -> Any:
        found, do = import_module(TASKS[first["task"]]).prepare(first["setup"])
        prepared.append(do)
        return found

    _send(answers, _attempt(prepare))
    for do in prepared:
        while (message := _read(stdin)) is not None:
            _limit_time(message["seconds"])
            _send(answers, _attempt(partial(do, message["job"])))


def _read(stdin: BinaryIO) -> dict[str, Any] | None:
    header = stdin.read(_HEADER)
    return json.loads(stdin.read(int.from_bytes(header, "big"))) if len(header) == _HEADER else None


def _attempt(make: Callable[[], Any]) -> bytes:
    try:
        return json.dumps({"value": make()}).encode()
    except MemoryError:
        return b'{"out_of_memory": true}'
    except ValueError as error:
        return json.dumps({"refused": str(error)}).encode()
    except BaseException as error:
        # PanicException, where a library's Rust panics, is a BaseException that cannot be imported. A lock that was
        # held then is poisoned, so this process is not asked again.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return json.dumps({"refused": reason, "damaged": True}).encode()


def _send(answers: BinaryIO, answer: bytes) -> None:
    answers.write(len(answer).to_bytes(_HEADER, "big") + answer)
    answers.flush()


def _limit_time(seconds: int) -> None:
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + seconds)


def _limit(kind: int, amount: int) -> None:
    """Sets a limit, at most to what the program that started this one may have."""
    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (amount if most == resource.RLIM_INFINITY else min(amount, most), most))


if __name__ == "__main__":
    main()
