"""Commands as processes that are forked from one in which everything is imported already.

They are as good to kill as those that a shell starts, and are at work after milliseconds instead of seconds.
"""

import multiprocessing
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.moejax.forked_imports"])


def start(*arguments: str | Path) -> BaseProcess:
    """`moejax ARGUMENTS`, in a process that was started."""
    process = _CONTEXT.Process(target=_main, args=([*map(str, arguments)],), daemon=True)
    process.start()
    return process


def _main(arguments: list[str]) -> None:
    from moejax.cli import main

    sys.argv = ["moejax", *arguments]
    main()
