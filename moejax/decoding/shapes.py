"""The shapes of compiled calls: which parts of prompts are fed together, and how many slots a decode step works on.

`CallShapes` are those of one call of `decode`, whose programs are compiled when they are first needed. A server's are
fixed when it starts (`moejax.serving.shapes`). Slots are numbered here and nowhere else.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from moejax.decoding.sequences import Sequence, SequenceGroup
from moejax.runtime import buckets

# What a program of another shape has to save before it is worth compiling: sequence-steps (one slot of one step, idle
# or not) for a smaller step, and tokens, padding included, for a narrower feeding call. docs/decisions.md.
SEQUENCE_STEPS_PER_COMPILATION = 256
TOKENS_PER_COMPILATION = 512


class Part(NamedTuple):
    """The part of a prompt from token `start` on, to be fed into `slots`; what is before it lies in slot `source`.

    sequences: those that the slots are of, of the same prompt.
    """

    group: SequenceGroup
    sequences: tuple[Sequence, ...]
    start: int
    source: int
    slots: tuple[int, ...]


class StepShape(NamedTuple):
    """A call of the decode loop: how many slots it steps, and how many positions of the cache of each it reads."""

    slots: int
    positions: int


class FeedShape(NamedTuple):
    """A call that feeds prompts.

    prompts, width: how many, and tokens of each.  positions: of the cache that each has, from the first on.
    outputs: slots that are filled.  one_each: whether slot i of these gets prompt i.
    in_place: whether prompt i is fed into slot i, in the cache of the whole batch.
    logprobs: best tokens reported for each place of the prompts, None for none.
    experts: whether all experts of the prompts are reported.
    """

    prompts: int
    width: int
    positions: int
    outputs: int
    one_each: bool = True
    in_place: bool = False
    logprobs: int | None = None
    experts: bool = False


@dataclass(frozen=True)
class SlotParts:
    """The slots of a batch, in `count` equal parts of neighbours: what the devices along the batch have each."""

    batch: int
    count: int

    def part(self, slot: int) -> int:
        """The part that a slot is in."""
        return slot // (self.batch // self.count)

    def next_free(self, free: Collection[int]) -> int:
        """The first free slot of the emptiest part: a step costs as much as the fullest part takes, of each."""
        room = Counter(map(self.part, free))
        return min(free, key=lambda slot: (-room[self.part(slot)], slot))

    def needed(self, occupied: Collection[int]) -> int:
        """How many slots a step takes that covers those `occupied`, as many of each part."""
        return self.count * max(Counter(map(self.part, occupied)).values(), default=0)

    @property
    def sizes(self) -> list[int]:
        """How many slots steps have, fewer first: of each part one, two, four, ..., and all."""
        return [*(size for size in self.doubled(self.batch) if size < self.batch), self.batch]

    def doubled(self, most: int) -> list[int]:
        """One of each part, two, four and so on, up to the first that holds `most`."""
        each = -(-most // self.count)
        return [self.count << doubled for doubled in range((each - 1).bit_length() + 1)]

    def choose(self, occupied: Collection[int], slots: int) -> list[int]:
        """The slots `occupied` and as many others as make `slots`, from each part the same number."""
        chosen = []
        for part in range(self.count):
            own = [slot for slot in range(self.batch) if self.part(slot) == part]
            own.sort(key=lambda slot: slot not in occupied)
            chosen += sorted(own[: slots // self.count])
        return chosen


class Shapes(Protocol):
    """What a `Slots` asks for shapes.

    parts: the slots.  length: cache positions of each.  chunk: most tokens of a prompt that one call feeds.
    shares_prompts: whether sequences of one prompt are fed once and copied, and not once each.
    """

    @property
    def parts(self) -> SlotParts: ...
    @property
    def length(self) -> int: ...
    @property
    def chunk(self) -> int: ...
    @property
    def shares_prompts(self) -> bool: ...

    def feed(self, waiting: list[Part]) -> tuple[list[Part], FeedShape]:
        """The parts to be fed next, and the shape of the call."""
        ...

    def step(self, occupied: Collection[int], furthest: int, remaining: int) -> StepShape:
        """The call for sequences in the slots `occupied`.

        Args:
            furthest: positions of the cache that they come to in this call, at most.
            remaining: steps that they may take until the last of them has ended.
        """
        ...


def compatible(first: Part, waiting: list[Part], most: int) -> list[Part]:
    """`first`, and of `waiting` those that may be fed with it, `most` in all.

    One call reads what was there before it, so no part may build on another of its call.
    """
    chosen, touched = [first], {first.source, *first.slots}
    for part in waiting:
        if len(chosen) == most:
            break
        if part is not first and not touched & {part.source, *part.slots}:
            chosen.append(part)
        touched |= {part.source, *part.slots}
    return chosen


@dataclass(kw_only=True)
class CallShapes:
    """The shapes of one call of `decode`: they follow from its requests, and from no clock.

    prompt_logprobs: best tokens reported for prompts, None for none.  prompt_experts: whether experts are.
    """

    parts: SlotParts
    length: int
    prompt_logprobs: int | None
    prompt_experts: bool
    shares_prompts: bool = True
    _steps: set[int] = field(default_factory=set)  # slots of the steps that were taken so far

    @property
    def chunk(self) -> int:
        return buckets.PREFILL_CHUNK

    def feed(self, waiting: list[Part]) -> tuple[list[Part], FeedShape]:
        """The longest prompts first, so that a call pads little, as many as its tokens allow."""
        ordered = sorted(waiting, key=lambda part: -len(part.group.request.prompt))
        positions = buckets.prompt_bucket(len(ordered[0].group.request.prompt))
        width = min(positions, self.chunk)
        chosen = compatible(ordered[0], ordered, buckets.prompts_per_call(width))
        chosen = chosen[: self._fed_first(chosen)]
        prompts = buckets.batch_bucket(len(chosen), self.parts.count)
        outputs = buckets.batch_bucket(sum(len(part.slots) for part in chosen), self.parts.count)
        one_each = all(len(part.slots) == 1 for part in chosen)
        return chosen, FeedShape(
            prompts=prompts,
            width=width,
            positions=positions,
            outputs=outputs,
            one_each=one_each,
            in_place=one_each and prompts == self.parts.batch,
            logprobs=self.prompt_logprobs,
            experts=self.prompt_experts,
        )

    def _fed_first(self, chosen: list[Part]) -> int:
        """How many of these, longest first, the next call feeds where dividing them saves more padding than it costs.

        Every further call counts as TOKENS_PER_COMPILATION tokens.
        """
        widths = [min(buckets.prompt_bucket(len(part.group.request.prompt)), self.chunk) for part in chosen]
        count = len(chosen)
        best: list[tuple[int, int]] = [
            (-TOKENS_PER_COMPILATION, 0)
        ]  # (tokens, prompts of the first call), from the end
        for start in reversed(range(count)):
            options = []
            for size in self.parts.doubled(count - start):
                fed = min(size, count - start)
                after, _ = best[count - start - fed]
                options.append((widths[start] * size + TOKENS_PER_COMPILATION + after, -fed))
            tokens, fed = min(options)
            best.append((tokens, -fed))
        return best[-1][1]

    def step(self, occupied: Collection[int], furthest: int, remaining: int) -> StepShape:
        """The least step that there is a program for in this call, or that `remaining` steps pay a program for."""
        needed = self.parts.needed(occupied)
        there = min((one for one in self._steps if one >= needed), default=self.parts.batch)
        least = SEQUENCE_STEPS_PER_COMPILATION
        fitting = [one for one in self.parts.sizes if one >= needed]
        paying = [one for one in fitting if (there - one) * remaining >= least]
        slots = min(paying, default=there)
        self._steps.add(slots)
        return StepShape(slots, self.length)
