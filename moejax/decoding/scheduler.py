"""Which sequence is in which slot, and what the next call of a compiled program does.

The same for `decode` and for a server, who say when to feed, when to step and how long. It knows no clock, no thread
and no queue: whatever a call made is returned.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from moejax.decoding.logprobs import scores_at
from moejax.decoding.outputs import Generated, PromptReport
from moejax.decoding.sequences import NewTokens, Sequence, SequenceGroup, push_tokens
from moejax.decoding.shapes import Part
from moejax.decoding.slots import Slots
from moejax.runtime.ambient import in_settled


class StartedSteps(NamedTuple):
    """A call of the decode loop that the devices work on.

    sequences: those that it steps, by slot.  slots: those that its outputs are of.  generated: the outputs, on the
    devices.
    """

    sequences: dict[int, Sequence]
    slots: list[int]
    generated: Generated


@dataclass(frozen=True, kw_only=True)
class FinishedSteps:
    """A call of the decode loop whose outputs are on the host.

    taken: steps.  may_have_ended: whether a sequence may end with them; stop strings are only found in its text.
    expert_rows: that each expert computed [d, L, E].
    """

    call: StartedSteps
    generated: Generated
    taken: int
    may_have_ended: bool

    @property
    def expert_rows(self) -> np.ndarray:
        return np.asarray(self.generated.rows)


@dataclass(frozen=True, kw_only=True)
class Fed:
    """What a feeding call did.

    tokens: the first tokens of sequences whose prompts are complete.  prompt_tokens: that were fed.
    expert_rows: that each expert computed [d, L, E].
    """

    tokens: list[NewTokens]
    prompt_tokens: int
    expert_rows: np.ndarray


class Scheduler:
    """The sequences that have slots.

    A group of sequences gets all its slots at once. Its prompt is fed in parts: to the first sequence, and the last
    part to all of them, on top of a copy of what the first has.
    """

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self._free = set(range(slots.shapes.parts.batch))
        self._parts: deque[Part] = deque()
        self._groups: dict[Sequence, SequenceGroup] = {}  # of the sequences that have a slot

    @property
    def groups(self) -> set[SequenceGroup]:
        """Groups that have slots."""
        return set(self._groups.values())

    @property
    def free(self) -> int:
        """Slots that no sequence has."""
        return len(self._free)

    @property
    def taken(self) -> int:
        """Slots that a step of all sequences that have one takes."""
        parts = self.slots.shapes.parts
        return parts.needed(set(range(parts.batch)) - self._free)

    @property
    def feeding(self) -> bool:
        """Whether parts of prompts wait to be fed."""
        return bool(self._parts)

    @property
    def running(self) -> bool:
        """Whether some sequence generates."""
        return bool(self.slots.running)

    def add(self, group: SequenceGroup) -> None:
        """Gives a group its slots, of which there are enough."""
        assert len(group.sequences) <= self.free, "the group does not fit the free slots"
        group.slots = []
        for sequence in group.sequences:
            slot = self.slots.shapes.parts.next_free(self._free)
            self._free.remove(slot)
            group.slots.append(slot)
            self._groups[sequence] = group
        self._parts.extend(self._parts_of(group))

    def _parts_of(self, group: SequenceGroup) -> list[Part]:
        first, shapes = group.slots[0], self.slots.shapes
        *starts, last = range(0, len(group.request.prompt), shapes.chunk)
        lead, everyone = tuple(group.sequences[:1]), tuple(group.sequences)
        parts = [Part(group, lead, start, first, (first,)) for start in starts]
        if shapes.shares_prompts:
            return [*parts, Part(group, everyone, last, first, tuple(group.slots))]
        # A prompt of one part has nothing before it, so that no slot is read but its own.
        return parts + [
            Part(group, (one,), last, first if starts else slot, (slot,))
            for one, slot in zip(everyone, group.slots, strict=True)
        ]

    def drop(self, group: SequenceGroup) -> None:
        """Takes the slots from a group, whether it has finished or not."""
        self._parts = deque(part for part in self._parts if part.group is not group)
        for sequence, slot in zip(group.sequences, group.slots, strict=True):
            if sequence in self._groups:
                self._release(sequence, slot)

    def feed(self) -> Fed:
        """Feeds the next part of a prompt, or several."""
        parts, shape = self.slots.shapes.feed(list(self._parts))
        if shape.in_place:  # the call writes into every slot: those that it does not fill have to be free
            filled = {slot for part in parts for slot in part.slots}
            shape = shape._replace(in_place=len(filled) + self.free == self.slots.shapes.parts.batch)
        self._parts = deque(part for part in self._parts if part not in parts)
        output, report, rows = self.slots.feed(parts, shape)
        gained: list[NewTokens] = []
        prompt_tokens = place = 0
        for number, part in enumerate(parts):
            if part.sequences[0] is part.group.sequences[0]:  # counted once, however often a part is fed
                left = len(part.group.request.prompt) - part.start
                prompt_tokens += min(left, shape.width)
                if shape.logprobs is not None or shape.experts:
                    part.group.prompt_reports.append(_report_of(report, number))
            for sequence in part.sequences:
                steps = slice(place, place + 1)
                gained += self._push(
                    sequence,
                    output.token[steps],
                    None if output.scores is None else scores_at(output.scores, (steps,)),
                    None if output.experts is None else np.asarray(output.experts[steps]),
                )
                place += 1
        return Fed(tokens=gained, prompt_tokens=prompt_tokens, expert_rows=rows)

    def start(self, wanted: int, *, ahead: int = 0, least: int = 0) -> StartedSteps:
        """Has the devices take up to `wanted` steps for every sequence that generates; does not wait for them.

        ahead: how many tokens of every sequence the devices have made that were not handed out yet.
        least: the call ends when a step of the sequences that go on takes no more slots.
        """
        running = self.slots.running
        slots, generated = self.slots.generate(wanted, ahead=ahead, least=least)
        return StartedSteps(running, slots, generated)

    @in_settled
    def wait(self, call: StartedSteps) -> FinishedSteps:
        """Waits for a call. What it made is not handed out yet: the devices may be given work before that."""
        generated: Generated = jax.device_get(call.generated)
        taken = int(generated.taken)
        assert taken > 0, "no sequence is active on the devices, yet some are unfinished here"
        tokens = np.asarray(generated.outputs.token)[:taken]
        ended = any(
            _may_have_ended(call.sequences[slot], tokens[:, place])
            for place, slot in enumerate(call.slots)
            if slot in call.sequences
        )
        return FinishedSteps(call=call, generated=generated, taken=taken, may_have_ended=ended)

    def hand_out(self, done: FinishedSteps) -> list[NewTokens]:
        """Gives the sequences what a call made, and frees the slots of those that end with it."""
        outputs, taken, gained = done.generated.outputs, done.taken, []
        for place, slot in enumerate(done.call.slots):
            sequence = done.call.sequences.get(slot)
            if sequence is None or sequence not in self._groups:
                continue
            gained += self._push(
                sequence,
                np.asarray(outputs.token)[:taken, place],
                None if outputs.scores is None else scores_at(outputs.scores, (slice(taken), place)),
                None if outputs.experts is None else np.asarray(outputs.experts)[:taken, place],
            )
        return gained

    def _push(self, sequence: Sequence, *made: Any) -> list[NewTokens]:
        group = self._groups[sequence]
        try:
            gained = push_tokens(group, sequence, *made)
        except Exception as error:  # whoever reads the sequence is told; what it shares a call with goes on
            sequence.error = error
            gained = NewTokens(group=group, sequence=sequence, events=[], experts=None)
        if sequence.ended:
            self._release(sequence, group.slots[sequence.output - group.sequences[0].output])
        return [] if gained is None else [gained]

    def _release(self, sequence: Sequence, slot: int) -> None:
        del self._groups[sequence]
        self.slots.release(slot)
        self._free.add(slot)


def _report_of(report: PromptReport, number: int) -> PromptReport:
    """What is reported of one prompt of a call."""
    return jax.tree.map(lambda leaf: leaf[number], report)


def _may_have_ended(sequence: Sequence, tokens: np.ndarray) -> bool:
    """Whether these next tokens [steps] of a sequence may end it."""
    request, last = sequence.request, int(tokens[-1])
    ended = last < 0 or last in request.stop_ids or len(sequence.tokens) + len(tokens) >= request.params.max_tokens
    return ended or bool(request.params.stop)
