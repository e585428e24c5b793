"""Commands as processes that are forked from one in which everything is imported already.

They are as good to kill as those that a shell starts, and are at work after milliseconds instead of seconds.
"""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.moejax.forked_imports"])


def start(*arguments: str | Path, killed_at: tuple[Path, int] | None = None) -> BaseProcess:
    """`moejax ARGUMENTS`, in a process that was started.

    killed_at: a folder and a number: it is killed by the so manieth time that it does something to a path in the folder
        (opens, makes, lists, renames, removes), whatever its other threads are doing then.
    """
    process = _CONTEXT.Process(target=_main, args=([*map(str, arguments)], killed_at), daemon=True)
    process.start()
    return process


def _main(arguments: list[str], killed_at: tuple[Path, int] | None) -> None:
    from moejax.cli import main

    if killed_at is not None:
        _kill_at(str(killed_at[0]), killed_at[1])
    sys.argv = ["moejax", *arguments]
    main()


def _kill_at(folder: str, last: int) -> None:
    done, lock = 0, threading.Lock()

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal done
        if any(isinstance(one, str | bytes | Path) and folder in os.fsdecode(one) for one in arguments):
            with lock:
                done += 1
                if done == last:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
