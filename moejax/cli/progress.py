"""Progress bars in bytes, on a terminal's stderr."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from moejax.cli import console


@contextmanager
def byte_bars(titles: Mapping[str, str], *, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function (phase, bytes done, bytes in all) that moves the bar of a phase; nothing is shown without a
    terminal, or when `quiet`."""
    if quiet or not console.has_terminal():
        yield lambda phase, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def on_progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(titles[phase], total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield on_progress
