"""The slots of a running batch on the devices: one decode state, whose sequences come and go.

What a call computes is chosen by `Shapes`; here it is made and called. That a sequence's cache is one block of the
state is known to this file and to the compiled steps alone.
"""

from typing import Any

import jax
import numpy as np

from moejax.decoding import steps
from moejax.decoding.outputs import Generated, PromptReport, StepOutput
from moejax.decoding.sampling_arrays import in_prompts, sampling_state
from moejax.decoding.sequences import Sequence
from moejax.decoding.shapes import FeedShape, Part, Shapes, StepShape
from moejax.decoding.some_slots import generate_some
from moejax.decoding.state import Features, empty_state
from moejax.loading import Model
from moejax.ops.table import make_ops
from moejax.runtime.ambient import in_settled


class Slots:
    """The decode state and the sequences in it.

    Args:
        model: what decodes.
        shapes: of its programs.
        feature_sets: what a call of the decode loop can do, the fastest first; each can do what those before it can,
            and the states of all have the same shapes.
        entropy: random bits for sequences without a seed.

    sequences: what generates in each slot, None where nothing does.
    """

    def __init__(self, model: Model, shapes: Shapes, feature_sets: tuple[Features, ...], entropy: int) -> None:
        self.model, self.shapes, self.feature_sets = model, shapes, feature_sets
        self.sequences: list[Sequence | None] = [None] * shapes.parts.batch
        self._entropy = entropy
        self._size = (shapes.parts.batch, shapes.length)
        everything, zeros = feature_sets[-1], make_ops(model.structure.backend).zeros
        self._state = model.programs.call(
            ("empty state", everything, *self._size),
            lambda: empty_state(model.config, everything, *self._size, model.dtype, model.parallel, zeros),
        )

    @property
    def running(self) -> dict[int, Sequence]:
        """The sequences that generate, by slot."""
        return {slot: one for slot, one in enumerate(self.sequences) if one is not None}

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache of the sequences that generate."""
        return sum(len(one.request.prompt) + len(one.tokens) for one in self.running.values())

    def release(self, slot: int) -> None:
        """Ends what generates in a slot; the next call of `generate` no longer steps it."""
        self.sequences[slot] = None

    @in_settled
    def feed(self, parts: list[Part], shape: FeedShape) -> tuple[StepOutput, PromptReport, np.ndarray]:
        """Feeds parts of prompts; sequences whose prompt is complete generate from now on.

        Returns:
            On the host: the first tokens (-1 where a prompt goes on), in the order of `parts` and of the slots of
            each; what is reported of the prompts, by part; and the rows that each expert computed [d, L, E].
        """
        for part in parts:
            if part.start + shape.width >= len(part.group.request.prompt):
                for slot, sequence in zip(part.slots, part.sequences, strict=True):
                    self.sequences[slot] = sequence
        output, report, rows = jax.device_get(self._run_feed(shape, parts))
        if not shape.in_place:
            return output, report, rows
        order = np.array([part.slots[0] for part in parts])
        return *jax.tree.map(lambda leaf: leaf[order], (output, report)), rows

    def _run_feed(self, shape: FeedShape, parts: list[Part]) -> tuple[StepOutput, PromptReport, Any]:
        model, features = self.model, self.feature_sets[-1]
        self._state, *results = model.programs.call(
            ("extend", features, shape, *self._size),
            lambda weights, *args: steps.extend(model.merged(weights), features, shape, *args),
            model.params,
            self._state,
            self._feed_arrays(shape, parts),
            donate=(1,),
        )
        output, report, rows = results
        return output, report, rows

    def _feed_arrays(self, shape: FeedShape, parts: list[Part]) -> steps.Feed:
        features, width = self.feature_sets[-1], shape.width
        tokens: Any = np.zeros((shape.prompts, width + 1), np.int32)
        numbers: Any = np.zeros((3, shape.prompts), np.int32)
        starts, lengths, sources = numbers
        fed: Any = np.arange(shape.outputs, dtype=np.int32) if shape.one_each else np.zeros((shape.outputs,), np.int32)
        slots: Any = np.full((shape.outputs,), self._size[0], np.int32)  # past the end: padding
        sequences: list[Sequence | None] = [None] * shape.outputs
        filled = 0
        for number, part in enumerate(parts):
            place = part.slots[0] if shape.in_place else number
            prompt = part.group.request.prompt
            piece = prompt[part.start : part.start + width + 1]
            tokens[place, : len(piece)] = piece
            starts[place], lengths[place], sources[place] = part.start, len(prompt), part.source
            for slot, sequence in zip(part.slots, part.sequences, strict=True):
                at = place if shape.one_each else filled
                fed[at], slots[at], sequences[at] = place, slot, sequence
                filled += 1
        return steps.Feed(
            tokens=tokens[:, :width],
            next_tokens=tokens[:, 1:],
            starts=starts,
            lengths=lengths,
            sources=sources,
            fed=fed,
            slots=slots,
            in_prompt=in_prompts(sequences, self.model.config.vocab_size if features.penalize else 0),
            sampling=sampling_state(sequences, features, self._entropy),
        )

    def generate(self, wanted: int, *, ahead: int = 0, least: int = 0) -> tuple[list[int], Generated]:
        """Has the devices generate up to `wanted` tokens for every sequence, and does not wait for them.

        Args:
            wanted: steps, at least 1.
            ahead: how many tokens more than on the host every sequence has on the devices.
            least: slots that a step may take without the call's coming to an end.

        Returns:
            The slots that the outputs are of, some of which may be free, and the outputs on the devices.
        """
        features, shape = self.next_call(wanted, ahead)
        slots = self.shapes.parts.choose(self.running, shape.slots)
        return slots, self._run_generate(features, shape, slots, wanted, least)

    def next_call(self, wanted: int, ahead: int = 0) -> tuple[Features, StepShape]:
        """What the next call of the decode loop can do, and its shape."""
        running = self.running
        params = [one.request.params for one in running.values()]
        features = next(one for one in self.feature_sets if all(map(one.covers, params)))
        furthest = max(len(one.request.prompt) + len(one.tokens) - 1 for one in running.values()) + ahead + wanted
        remaining = max(one.request.params.max_tokens - len(one.tokens) for one in running.values()) - ahead
        return features, self.shapes.step(running, min(furthest, self.shapes.length), remaining)

    @in_settled
    def warm_up(self, program: FeedShape | tuple[Features, StepShape]) -> None:
        """Compiles a program, unless it is there, by running it on nothing."""
        assert not self.running, "warming up is for slots that are all free"
        if isinstance(program, FeedShape):
            jax.block_until_ready(self._run_feed(program, []))
            return
        features, call = program
        jax.block_until_ready(self._run_generate(features, call, self.shapes.parts.choose((), call.slots), 1, 0))

    def _run_generate(
        self, features: Features, shape: StepShape, slots: list[int], wanted: int, least: int
    ) -> Generated:
        model, (batch, length) = self.model, self._size
        idle = np.array([self.sequences[slot] is None for slot in slots])
        numbers = (np.int32(wanted), np.int32(least))
        key = ("generate", features, batch, length, shape)
        if shape.slots == batch:
            positions = None if shape.positions == length else shape.positions
            self._state, generated = model.programs.call(
                key,
                lambda weights, *args: steps.generate(model.merged(weights), features, *args, positions=positions),
                model.params,
                self._state,
                idle,
                *numbers,
                donate=(1,),
            )
        else:
            self._state, generated = model.programs.call(
                key,
                lambda weights, *args: generate_some(model.merged(weights), features, shape.positions, *args),
                model.params,
                self._state,
                np.array(slots, np.int32),
                idle,
                *numbers,
                donate=(1,),
            )
        return generated
