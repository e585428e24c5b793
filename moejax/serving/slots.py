"""The rows of a server on the devices: one decode state for as long as it runs, whose rows (slots) come and go.

All shapes are fixed when it starts. A call of a compiled program differs in what it can do (`LEVELS`), and in how much
of the cache it reads (`read_lengths`): each combination is a program of its own, compiled by `warm_up`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from moejax.declarations import cache_placements
from moejax.decoding import buckets, steps
from moejax.decoding.engine import row_params
from moejax.decoding.rows import Row
from moejax.decoding.sampling_params import SamplingParams
from moejax.decoding.state import Features, empty_state
from moejax.loading import Model
from moejax.serving.settings import EngineSettings
from sharding import bytes_per_device, device_memory

MAX_STOP_IDS = 16  # stop tokens of a request, EOS included
MAX_STOP_STRINGS, MAX_STOP_CHARACTERS = 1024, 16_384  # of a request, whose text is searched for each
MAX_LOGPROBS = 20  # as OpenAI's top_logprobs allows
MIN_READ_LENGTH = 256  # a step that reads fewer slots is no faster


class Part(NamedTuple):
    """The part of a prompt from token `start` on, to be fed into `slot`; what is before it lies in slot `source`."""

    row: Row
    start: int
    source: int
    slot: int


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The shapes of all programs.

    batch: slots.  length: of the cache of each, in tokens.
    chunk, short: tokens of a part of a prompt, and of a short prompt, which is fed whole.
    groups: parts per call, the least and, for short prompts, the most.
    """

    batch: int
    length: int
    chunk: int
    short: int
    groups: tuple[int, int]

    @property
    def read_lengths(self) -> list[int]:
        """How much of the cache a call of the decode loop may read: 256, then four times as much, up to all of it."""
        lengths, length = [], MIN_READ_LENGTH
        while length < self.length:
            lengths.append(length)
            length *= 4
        return [*lengths, self.length]


def make_shapes(model: Model, settings: EngineSettings) -> Shapes:
    """The shapes for a model and its mesh; the batch is rounded up to what divides over it."""
    parts = model.parallel.rules.parts("batch")
    chunk = settings.prefill_chunk
    short = max(16, chunk // 4)
    return Shapes(
        batch=-(-settings.max_batch // parts) * parts,
        # In whole chunks: a chunk that reached past the end would be written further left.
        length=-(-model.max_seq_len // chunk) * chunk,
        chunk=chunk,
        short=short,
        groups=(buckets.batch_bucket(1, parts), buckets.batch_bucket(max(1, chunk // short), parts)),
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


def make_levels(vocabulary: int) -> tuple[Features, ...]:
    """What a call can do, from the fastest to the one that can do everything; their states have the same shapes.

    All report experts: the router knows them anyway, and handing them out costs next to nothing.
    """
    everything = Features(
        sample=True,
        filter=True,
        penalize=True,
        min_tokens=True,
        logprobs=min(MAX_LOGPROBS, vocabulary),
        experts=True,
        stop_ids=MAX_STOP_IDS,
    )
    greedy = Features(experts=True, stop_ids=MAX_STOP_IDS)
    sampled = Features(sample=True, experts=True, stop_ids=MAX_STOP_IDS)
    return greedy, sampled, everything


def level_of(params: SamplingParams) -> int:
    """The least level (an index into `make_levels`) that can do what a request asks for."""
    beyond = params.filtered or params.penalized or params.min_tokens > 0
    if beyond or params.logprobs is not None:
        return 2
    return 0 if params.greedy else 1


class Slots:
    """The decode state and the rows in it. Used by one thread.

    rows: what generates in each slot, None where nothing does.
    """

    def __init__(self, model: Model, shapes: Shapes) -> None:
        self.model, self.shapes = model, shapes
        self.levels = make_levels(model.config.vocab_size)
        self.rows: list[Row | None] = [None] * shapes.batch
        self._entropy = int(np.random.SeedSequence().generate_state(2, np.uint64)[0])
        everything = self.levels[-1]
        self._state = model.programs.call(
            ("empty state", everything, shapes.batch, shapes.length),
            lambda: empty_state(model.config, everything, shapes.batch, shapes.length, model.dtype, model.parallel),
        )

    @property
    def running(self) -> int:
        """Slots in which something generates."""
        return sum(row is not None for row in self.rows)

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache of the rows that generate."""
        return sum(len(row.request.prompt) + len(row.tokens) for row in self.rows if row is not None)

    def release(self, slot: int) -> None:
        """Ends what generates in a slot; the next call of `generate` no longer steps it."""
        self.rows[slot] = None

    def is_short(self, part: Part) -> bool:
        """Whether a part is a whole prompt that may be fed together with others."""
        return len(part.row.request.prompt) <= self.shapes.short

    def group_size(self, part: Part) -> int:
        """How many parts of the kind of `part` one call of `feed` takes."""
        return self.shapes.groups[self.is_short(part)]

    def feed(self, parts: Sequence[Part]) -> tuple[steps.StepOutput, np.ndarray]:
        """Feeds parts of prompts, all short or all not; rows whose prompt is complete generate from now on.

        Returns:
            The first tokens on the host, place i for `parts[i]` (token -1 where its prompt goes on), and the rows that
            each expert computed [d, L, E].
        """
        shapes, short = self.shapes, self.is_short(parts[0])
        width, length = (shapes.short, shapes.short) if short else (shapes.chunk, shapes.length)
        group = next(size for size in shapes.groups if size >= len(parts))
        everything = self.levels[-1]
        tokens = np.zeros((group, width), np.int32)
        starts, lengths, sources = (np.zeros((group,), np.int32) for _ in range(3))
        slots = np.full((group,), shapes.batch, np.int32)  # past the end: padding
        in_prompt = np.zeros((group, self.model.config.vocab_size), bool)
        for place, (row, start, source, slot) in enumerate(parts):
            fed = row.request.prompt[start : start + width]
            tokens[place, : len(fed)] = fed
            starts[place], lengths[place], sources[place], slots[place] = start, len(row.request.prompt), source, slot
            in_prompt[place, row.request.prompt] = True
            if start + width >= len(row.request.prompt):
                self.rows[slot] = row
        return self._run_feed(
            (group, width, length),
            (tokens, starts, lengths, sources, slots, in_prompt),
            row_params([part.row for part in parts], group, everything, self._entropy),
        )

    def _run_feed(self, shape: tuple[int, int, int], arrays: tuple[np.ndarray, ...], params: Any) -> Any:
        model, everything = self.model, self.levels[-1]
        self._state, output, rows = model.programs.call(
            ("extend", everything, shape, self.shapes.batch, self.shapes.length),
            lambda weights, *args: steps.extend(model.merged(weights), everything, shape[2], *args),
            model.params,
            self._state,
            *arrays,
            params,
            donate=(1,),
        )
        return jax.device_get((output, rows))

    def generate(self, wanted: int) -> steps.Generated:
        """Up to `wanted` tokens for every row, on the host."""
        rows = [row for row in self.rows if row is not None]
        level = max(level_of(row.request.params) for row in rows)
        furthest = max(len(row.request.prompt) + len(row.tokens) - 1 for row in rows) + wanted
        read = next(length for length in self.shapes.read_lengths if length >= min(furthest, self.shapes.length))
        return self._run_generate(level, read, wanted)

    def warm_up(self) -> None:
        """Compiles every program that `feed` and `generate` may ever need, by running it on nothing."""
        assert not self.running, "warming up is for a server that does not serve yet"
        shapes = self.shapes
        kinds = {(group, shapes.short, shapes.short) for group in shapes.groups}
        for group, width, length in sorted(kinds | {(shapes.groups[0], shapes.chunk, shapes.length)}):
            numbers = [np.zeros((group,), np.int32) for _ in range(3)]
            nowhere = np.full((group,), shapes.batch, np.int32)
            in_prompt = np.zeros((group, self.model.config.vocab_size), bool)
            arrays = (np.zeros((group, width), np.int32), *numbers, nowhere, in_prompt)
            self._run_feed((group, width, length), arrays, row_params([], group, self.levels[-1], self._entropy))
        for level in range(len(self.levels)):
            for read in shapes.read_lengths:
                self._run_generate(level, read, 1)

    def _run_generate(self, level: int, read: int, wanted: int) -> steps.Generated:
        model, features, shapes = self.model, self.levels[level], self.shapes
        slots = None if read == shapes.length else read
        self._state, generated = model.programs.call(
            ("generate", features, shapes.batch, shapes.length, read),
            lambda weights, *args: steps.generate(model.merged(weights), features, *args, slots=slots),
            model.params,
            self._state,
            np.array([row is None for row in self.rows]),
            np.int32(wanted),
            donate=(1,),
        )
        return jax.device_get(generated)
