"""The shapes of a server's programs, fixed when it starts, and the memory that they take."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from moejax._sharding import bytes_per_device, device_memory
from moejax.decoding.shapes import FeedShape, Part, SlotParts, StepShape, compatible
from moejax.decoding.state import Features
from moejax.families.kv_cache import cache_placements
from moejax.loading import Model
from moejax.ops.table import make_ops
from moejax.runtime import buckets
from moejax.serving.limits import MAX_LOGPROBS
from moejax.serving.settings import EngineSettings

Program = FeedShape | tuple[Features, StepShape]  # of one shape, and of what a call can do
MIN_READ_LENGTH = 256  # a step that reads fewer positions is no faster
GROWTH = 4  # of slots, and of positions, from one call of the decode loop to the next larger one: docs/decisions.md
MOST_COPIED = 16  # a call for some slots copies at most this part of the cache: copying more costs more than it saves


@dataclass(frozen=True, kw_only=True)
class ServedShapes:
    """The shapes of all programs of a server.

    parts: the slots.  length: positions of the cache of each.
    chunk, short: tokens of a part of a prompt, and of a short prompt, which is fed whole.
    most: short prompts per call, beside calls of the fewest prompts that divide over the mesh.
    logprobs: best tokens reported for each place of a prompt whose log-probabilities are asked for.
    reads_all: whether attention reads positions of the cache that no sequence needs.
    """

    parts: SlotParts
    length: int
    chunk: int
    short: int
    most: int
    logprobs: int
    reads_all: bool
    shares_prompts: bool = False  # a program for each number of outputs would be compiled before the first request

    @property
    def feeds(self) -> list[FeedShape]:
        """The calls that feed prompts."""
        fewest, short = self.parts.count, self.short
        shorts = [FeedShape(count, short, short, count) for count in sorted({fewest, self.most})]
        long = FeedShape(fewest, self.chunk, self.length, fewest)
        return [*shorts, long, long._replace(logprobs=self.logprobs)]

    def programs(self, features: Sequence[Features]) -> list[Program]:
        """All of them, in the order in which requests come to need them: those of a single short prompt first, where
        nothing out of the ordinary is asked for, and last what the fewest ask for, of many sequences.
        """
        first, *others = self.feeds
        steps = [(one, step) for step in self.steps for one in features]
        return [first, *steps[: len(features)], *others, *steps[len(features) :]]

    def feed(self, waiting: list[Part]) -> tuple[list[Part], FeedShape]:
        """The part that has waited longest, and with a short prompt other short ones."""
        first = waiting[0]
        *shorts, long, reporting = self.feeds
        if not self._is_short(first):
            return compatible(first, waiting[:1], 1), reporting if _reports(first) else long
        chosen = compatible(first, [part for part in waiting if self._is_short(part)], shorts[-1].prompts)
        return chosen, next(one for one in shorts if one.prompts >= len(chosen))

    def _is_short(self, part: Part) -> bool:
        """Whether a part is a whole prompt that may be fed together with others."""
        return len(part.group.request.prompt) <= self.short and not _reports(part)

    @property
    def steps(self) -> list[StepShape]:
        """The calls of the decode loop, fewer slots first."""
        return [
            StepShape(slots, positions)
            for slots in _growing(self.parts.count, self.parts.batch)
            for positions in _growing(MIN_READ_LENGTH, self.length)
            if self._is_worth_it(slots, positions)
        ]

    def _is_worth_it(self, slots: int, positions: int) -> bool:
        """Whether there is a call for so many slots and positions. A call for all slots reads the cache in place."""
        batch = self.parts.batch
        if slots == batch:
            return self.reads_all or positions == self.length
        return slots == self.parts.count or MOST_COPIED * slots * positions <= batch * self.length

    def step(self, occupied: Collection[int], furthest: int, remaining: int = 0) -> StepShape:
        """The least call for the sequences in `occupied`; it does not depend on how much `remaining` they have."""
        needed = self.parts.needed(occupied)
        return next(one for one in self.steps if one.slots >= needed and one.positions >= furthest)


def _reports(part: Part) -> bool:
    """Whether log-probabilities of the prompt are asked for."""
    return part.group.request.params.prompt_logprobs is not None


def _growing(first: int, last: int) -> Iterator[int]:
    """`first`, GROWTH times as much and so on, and `last`."""
    while first < last:
        yield first
        first *= GROWTH
    yield last


def make_shapes(model: Model, settings: EngineSettings) -> ServedShapes:
    """The shapes for a model and its mesh; the batch is rounded up to what divides over it."""
    count = model.parallel.rules.parts("batch")
    chunk = settings.prefill_chunk
    short = max(16, chunk // 4)
    return ServedShapes(
        parts=SlotParts(-(-settings.max_batch // count) * count, count),
        # In whole chunks: a chunk that reached past the end would be written further left.
        length=-(-model.max_seq_len // chunk) * chunk,
        chunk=chunk,
        short=short,
        logprobs=min(MAX_LOGPROBS, model.config.vocab_size),
        most=buckets.batch_bucket(max(1, chunk // short), count),
        reads_all=make_ops(model.structure.backend).reads_all,
    )


def kv_cache_bytes(model: Model, shapes: ServedShapes) -> int:
    """Bytes of the key/value cache per device.

    Raises:
        ValueError: when a device does not have them, with the batch that would fit.
    """
    placements = cache_placements(model.config, model.parallel.rules, shapes.parts.batch, shapes.length, model.dtype)
    needed = bytes_per_device(placements)
    memory = device_memory(model.devices)
    free = memory.free_bytes * 9 // 10  # the rest is for what the programs compute with
    if needed > free:
        fits = shapes.parts.batch * free // needed
        advice = f"--max-batch {fits} fits, or use" if fits else "use"
        raise ValueError(
            f"the key/value cache of --max-batch {shapes.parts.batch} sequences x --max-seq-len {model.max_seq_len} "
            f"tokens needs {needed / 1e9:.1f} GB{' per device' if model.mesh.size > 1 else ''}, but {memory.device} "
            f"has {memory.free_bytes / 1e9:.1f} GB free after the weights: {advice} a lower --max-seq-len"
        )
    return needed
