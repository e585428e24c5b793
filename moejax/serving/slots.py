"""The rows of a server on the devices: one decode state for as long as it runs, whose rows (slots) come and go.

All shapes are fixed when it starts (`shapes`). A call of the decode loop differs in what it can do (`make_levels`), in
how many rows it steps and in how much of the cache it reads: each combination is a program, compiled by `warm_up`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from moejax.decoding import steps
from moejax.decoding.engine import row_params
from moejax.decoding.rows import Row
from moejax.decoding.sampling_params import SamplingParams
from moejax.decoding.some_rows import generate_some
from moejax.decoding.state import Features, empty_state
from moejax.loading import Model
from moejax.serving.shapes import Shapes, StepShape

MAX_STOP_IDS = 16  # stop tokens of a request, EOS included
MAX_STOP_STRINGS, MAX_STOP_CHARACTERS = 1024, 16_384  # of a request, whose text is searched for each
MAX_LOGPROBS = 20  # as OpenAI's top_logprobs allows


class Part(NamedTuple):
    """The part of a prompt from token `start` on, to be fed into `slot`; what is before it lies in slot `source`."""

    row: Row
    start: int
    source: int
    slot: int


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

    def by_expert(self, rows: np.ndarray) -> np.ndarray:
        """Rows per expert [d, L, E] from rows per place [d, L, P]."""
        return self.model.structure.experts.by_expert(rows)

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

    @property
    def rows_per_step(self) -> int:
        """How many rows a step of those that generate works on."""
        return self.shapes.step(self._occupied(), 1).rows

    def generate(self, wanted: int, ahead: int = 0) -> tuple[Sequence[int], steps.Generated]:
        """Has the devices generate up to `wanted` tokens for every row, and does not wait for them.

        Args:
            wanted: steps, at least 1.
            ahead: how many tokens more than its row on the host every row on the devices has.

        Returns:
            The slots that the rows of the outputs are of, some of which may be empty, and the outputs on the devices.
        """
        rows = [row for row in self.rows if row is not None]
        level = max(level_of(row.request.params) for row in rows)
        furthest = max(len(row.request.prompt) + len(row.tokens) - 1 for row in rows) + ahead + wanted
        occupied = self._occupied()
        shape = self.shapes.step(occupied, min(furthest, self.shapes.length))
        slots = self.shapes.choose(occupied, shape.rows)
        return slots, self._run_generate(level, shape, slots, wanted)

    def _occupied(self) -> list[int]:
        return [slot for slot, row in enumerate(self.rows) if row is not None]

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
            for shape in shapes.steps:
                jax.block_until_ready(self._run_generate(level, shape, shapes.choose((), shape.rows), 1))

    def _run_generate(self, level: int, shape: StepShape, slots: Sequence[int], wanted: int) -> steps.Generated:
        model, features, shapes = self.model, self.levels[level], self.shapes
        idle = np.array([self.rows[slot] is None for slot in slots])
        key = ("generate", features, shapes.batch, shapes.length, shape)
        if shape.rows == shapes.batch:
            read = None if shape.slots == shapes.length else shape.slots
            self._state, generated = model.programs.call(
                key,
                lambda weights, *args: steps.generate(model.merged(weights), features, *args, slots=read),
                model.params,
                self._state,
                idle,
                np.int32(wanted),
                donate=(1,),
            )
        else:
            self._state, generated = model.programs.call(
                key,
                lambda weights, *args: generate_some(model.merged(weights), features, shape.slots, *args),
                model.params,
                self._state,
                np.array(slots, np.int32),
                idle,
                np.int32(wanted),
                donate=(1,),
            )
        return generated
