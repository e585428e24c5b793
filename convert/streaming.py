"""The conversion itself: item by item from a source to a target, in bounded memory, resumable at any moment.

The order is what makes it safe. The journal is there before anything else; an item is on the disk before the journal
says so; the manifest comes last, when everything has its final name. So a folder without a manifest is unfinished, and
what its journal says is true. Files of the source are hashed beside the conversion: when it goes on after a stop, an
item counts only if the hashes of the files that it was read from are in the journal as well.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moejax._convert.checksums import array_checksum
from moejax._convert.durable import writing
from moejax._convert.errors import CheckpointError
from moejax._convert.files import NOT_FINITE
from moejax._convert.items import ArrayPlan, Item
from moejax._convert.journal import Journal, Record
from moejax._convert.memory import WorkerMemory
from moejax._convert.reading import all_finite
from moejax._convert.source import TensorSource
from moejax._convert.source_hashes import SourceHashes
from moejax._convert.target import Target

Phase = Literal["convert", "check"]
OnProgress = Callable[[Phase, int, int], None]  # what is done, bytes of it, bytes in all


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What does not change while a conversion runs. workers: items in flight at a time."""

    source: TensorSource
    target: Target
    journal: Journal
    hashes: SourceHashes
    allow_nan: bool
    workers: int
    on_progress: OnProgress


def convert_items(stream: Stream, items: Sequence[Item]) -> float:
    """Converts `items` and notes each in the journal; returns the seconds that it took.

    Raises:
        CheckpointError: for the first item that fails; those before it are done.
    """

    def one(item: Item) -> None:
        stream.hashes.start(item.files)
        arrays: dict[str, np.ndarray] = {}
        records: dict[str, Record] = {}
        for array, values in memory.arrays(item):
            stream.source.read_into(array.source, values, allow_nan=True)
            finite = all_finite(values)
            if not finite and not stream.allow_nan:
                raise CheckpointError(_not_finite(stream.source, array, values))
            arrays[array.target] = values
            records[array.target] = Record(checksum=array_checksum(values), finite=finite)
        with writing(stream.target.folder):
            stream.target.write(item, arrays)
            stream.journal.add_item(item.name, records)
            stream.journal.add_hashes(stream.hashes.found())

    memory = WorkerMemory(items)
    try:
        return _in_parallel(stream, "convert", items, one)
    finally:
        with writing(stream.target.folder):
            done = {file for item in items if item.name in stream.journal.items for file in item.files}
            stream.journal.add_hashes(stream.hashes.of(done))


def check_items(stream: Stream, items: Sequence[Item]) -> tuple[Mapping[str, str], float]:
    """Reads `items` back and compares them with the journal.

    Returns: what is wrong, by item, and the seconds that it took.
    """
    memory, damaged = WorkerMemory(items), dict[str, str]()

    def one(item: Item) -> None:
        problem = _problem(stream.target, item, memory, stream.journal.items[item.name])
        if problem is not None:
            damaged[item.name] = problem

    seconds = _in_parallel(stream, "check", items, one)
    return {item.name: damaged[item.name] for item in items if item.name in damaged}, seconds


def _not_finite(source: TensorSource, array: ArrayPlan, values: np.ndarray) -> str:
    where = ~np.isfinite(values.reshape(-1))
    return (
        f"{source.tensors[array.source].file}: tensor {array.source!r} holds {int(where.sum())} NaN or infinite values "
        f"of {where.size}, the first at flat index {int(where.argmax())}; {NOT_FINITE}, or convert it as it is with "
        "--allow-nan"
    )


def _problem(target: Target, item: Item, memory: WorkerMemory, records: Mapping[str, Record]) -> str | None:
    if records.keys() != {array.target for array in item.arrays}:
        return f"{item.name!r} is noted with other arrays than it has"
    try:
        found = target.read_back(item, (values for _, values in memory.arrays(item)))
        for array, values in zip(item.arrays, found, strict=True):
            if (got := array_checksum(values)) != (written := records[array.target].checksum):
                return f"{array.target!r} reads back with the checksum {got}, but {written} was written"
    except CheckpointError as error:
        return str(error)
    return None


def _in_parallel(stream: Stream, phase: Phase, items: Sequence[Item], work: Callable[[Item], None]) -> float:
    """`work` for every item, in order, as many at a time as there are workers; stops at the first failure."""
    began = time.perf_counter()
    total, done = sum(item.nbytes for item in items), 0
    reporting, failed = threading.Lock(), threading.Event()

    def one(item: Item) -> None:
        nonlocal done
        if failed.is_set():
            return
        try:
            work(item)
            with reporting:
                done += item.nbytes
                stream.on_progress(phase, done, total)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(stream.workers, thread_name_prefix=phase) as pool:
        futures = [pool.submit(one, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:  # Ctrl-C too: what has not begun does not begin
            failed.set()
            raise
    return time.perf_counter() - began
