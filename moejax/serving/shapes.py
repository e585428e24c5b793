"""The shapes of a server's programs, fixed when it starts, and the memory that they take."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax

from moejax.loading import Model
from moejax.moe.experts import BACKENDS, resolve_backend
from moejax.runtime import buckets
from moejax.serving.settings import EngineSettings
from moejax.weights.declarations import cache_placements
from sharding import bytes_per_device, device_memory

MIN_READ_LENGTH = 256  # a step that reads fewer slots is no faster
GROWTH = 4  # of rows, and of slots, from one call of the decode loop to the next larger one: docs/decisions.md
MOST_COPIED = 16  # a call for some rows copies at most this part of the cache: copying more costs more than it saves


class StepShape(NamedTuple):
    """A call of the decode loop: how many rows it steps, and how many slots of the cache of each it reads."""

    rows: int
    slots: int


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The shapes of all programs.

    batch: slots.  length: of the cache of each, in tokens.
    chunk, short: tokens of a part of a prompt, and of a short prompt, which is fed whole.
    groups: parts per call, the least and, for short prompts, the most.
    splits: equal parts, each of neighbouring slots, that the batch is split into over the mesh.
    reads_all: whether attention reads slots of the cache that no row needs.
    """

    batch: int
    length: int
    chunk: int
    short: int
    groups: tuple[int, int]
    splits: int
    reads_all: bool

    @property
    def steps(self) -> list[StepShape]:
        """The calls of the decode loop, fewer rows first."""
        return [
            StepShape(rows, slots)
            for rows in _growing(self.splits, self.batch)
            for slots in _growing(MIN_READ_LENGTH, self.length)
            if self._is_worth_it(rows, slots)
        ]

    def _is_worth_it(self, rows: int, slots: int) -> bool:
        """Whether there is a call for so many rows of so many slots. All rows read the cache in place."""
        if rows == self.batch:
            return self.reads_all or slots == self.length
        return rows == self.splits or MOST_COPIED * rows * slots <= self.batch * self.length

    def step(self, occupied: Collection[int], furthest: int) -> StepShape:
        """The least call for the rows in the slots `occupied`, which come to `furthest` tokens in the cache."""
        rows = self.splits * max(Counter(map(self.part, occupied)).values())
        return next(one for one in self.steps if one.rows >= rows and one.slots >= furthest)

    def choose(self, occupied: Collection[int], rows: int) -> list[int]:
        """The slots `occupied` and as many others as make `rows`, from each part of the batch the same number."""
        chosen = []
        for part in range(self.splits):
            slots = [slot for slot in range(self.batch) if self.part(slot) == part]
            slots.sort(key=lambda slot: slot not in occupied)
            chosen += sorted(slots[: rows // self.splits])
        return chosen

    def part(self, slot: int) -> int:
        """The part of the batch that a slot is in."""
        return slot // (self.batch // self.splits)


def _growing(first: int, last: int) -> Iterator[int]:
    """`first`, GROWTH times as much and so on, and `last`."""
    while first < last:
        yield first
        first *= GROWTH
    yield last


def make_shapes(model: Model, settings: EngineSettings) -> Shapes:
    """The shapes for a model and its mesh; the batch is rounded up to what divides over it."""
    parts = model.parallel.rules.parts("batch")
    chunk = settings.prefill_chunk
    short = max(16, chunk // 4)
    backend = resolve_backend(model.expert_backend, jax.default_backend())
    return Shapes(
        batch=-(-settings.max_batch // parts) * parts,
        # In whole chunks: a chunk that reached past the end would be written further left.
        length=-(-model.max_seq_len // chunk) * chunk,
        chunk=chunk,
        short=short,
        groups=(buckets.batch_bucket(1, parts), buckets.batch_bucket(max(1, chunk // short), parts)),
        splits=parts,
        reads_all=BACKENDS[backend].operations.reads_all,
    )


def kv_cache_bytes(model: Model, shapes: Shapes) -> int:
    """Bytes of the key/value cache per device.

    Raises:
        ValueError: when a device does not have them, with the batch that would fit.
    """
    placements = cache_placements(model.config, model.parallel.rules, shapes.batch, shapes.length, model.dtype)
    needed = bytes_per_device(placements)
    memory = device_memory(model.devices)
    free = memory.free_bytes * 9 // 10  # the rest is for what the programs compute with
    if needed > free:
        fits = shapes.batch * free // needed
        advice = f"--max-batch {fits} fits, or use" if fits else "use"
        raise ValueError(
            f"the key/value cache of --max-batch {shapes.batch} rows x --max-seq-len {model.max_seq_len} tokens needs "
            f"{needed / 1e9:.1f} GB{' per device' if model.mesh.size > 1 else ''}, but {memory.device} has "
            f"{memory.free_bytes / 1e9:.1f} GB free after the weights: {advice} a lower --max-seq-len"
        )
    return needed
