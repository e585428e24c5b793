"""Which sequences are stepped and fed when: few steps of idle slots, and the same schedule streamed or not."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moejax
from moejax import SamplingParams
from moejax.decoding import engine, shapes
from moejax.decoding.requests import Request
from moejax.decoding.scheduler import FinishedSteps, Scheduler, StartedSteps
from moejax.decoding.sequences import Sequence, SequenceGroup
from moejax.decoding.shapes import CallShapes, FeedShape, Part, SlotParts
from moejax.decoding.slots import Slots
from moejax.runtime.programs import Programs
from tests.moejax.decoding.tiny_checkpoint import Tiny, load_tiny


@dataclass
class Schedule:
    """What was fed, as (prompts, slots, shape), and what was stepped, as (slots, steps)."""

    fed: list[tuple[list[int], list[int], FeedShape]] = field(default_factory=list)
    stepped: list[tuple[int, int]] = field(default_factory=list)

    @property
    def sequence_steps(self) -> int:
        return sum(slots * steps for slots, steps in self.stepped)

    @property
    def widths(self) -> list[int]:
        """Slots of each single step."""
        return [slots for slots, steps in self.stepped for _ in range(steps)]

    def clear(self) -> None:
        self.fed.clear()
        self.stepped.clear()


@pytest.fixture
def schedule(monkeypatch: pytest.MonkeyPatch) -> Iterator[Schedule]:
    found, feed, wait = Schedule(), Slots.feed, Scheduler.wait

    def noted_feed(slots: Slots, parts: list[Part], shape: FeedShape) -> Any:
        prompts = [part.group.request.index for part in parts]
        found.fed.append((prompts, [slot for part in parts for slot in part.slots], shape))
        return feed(slots, parts, shape)

    def noted_wait(scheduler: Scheduler, call: StartedSteps) -> FinishedSteps:
        done = wait(scheduler, call)
        found.stepped.append((len(call.slots), done.taken))
        return done

    monkeypatch.setattr(Slots, "feed", noted_feed)
    monkeypatch.setattr(Scheduler, "wait", noted_wait)
    yield found


def prompts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 300, length).tolist() for length in lengths]


def test_ragged_requests_take_few_steps_of_idle_slots(schedule: Schedule) -> None:
    """200 prompts of 4 to 200 tokens, 26,400 tokens after them; batch after batch, they took 50,072 sequence-steps."""
    model, rng = moejax.load("demo"), np.random.default_rng(0)
    prompts = [rng.integers(3, model.config.vocab_size, rng.integers(4, 201)).tolist() for _ in range(200)]
    lengths = rng.permutation(np.linspace(8, 256, 200).round().astype(int)).tolist()
    params = [SamplingParams(max_tokens=length, ignore_eos=True) for length in lengths]
    results = moejax.decode(model, prompts, params)
    assert [len(result.token_ids) for result in results] == lengths
    assert sum(lengths) - 200 <= schedule.sequence_steps <= 36_000
    assert model.programs.compiled <= 13  # as many as batch after batch
    assert {tuple(result.prompt_token_ids) for result in results} == set(map(tuple, prompts))


LENGTHS = [3, 40, 9, 17, 2, 12, 33, 5, 16, 8]
TOKENS = [30, 4, 22, 9, 17, 3, 12, 26, 5, 8]


def everything(tiny: Tiny, stop: str = "") -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts of many lengths, greedy and sampled."""
    common: dict[str, Any] = {"ignore_eos": True, "stop": [stop] if stop else []}
    params = [
        SamplingParams(max_tokens=count, **common, **({"temperature": 1.0, "seed": count} if count % 2 else {}))
        for count in TOKENS
    ]
    return prompts_of(LENGTHS), params


@pytest.mark.parametrize("stop", ["", "é"], ids=["no stop strings", "a stop string"])
def test_more_sequences_than_slots(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, schedule: Schedule, stop: str) -> None:
    """Each gets what it gets alone, and a stream makes the same calls, but for how many steps each takes."""
    prompts, params = everything(tiny, stop)
    alone = [moejax.decode(tiny.model, prompt, one)[0] for prompt, one in zip(prompts, params, strict=True)]
    monkeypatch.setattr(engine, "MAX_SEQUENCES", 4)
    schedule.clear()
    together = moejax.decode(tiny.model, prompts, params)
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]
    assert [result.text for result in together] == [result.text for result in alone]
    assert len(schedule.fed) > 2 and sorted(schedule.fed[0][1]) == [0, 1, 2, 3]
    fed, widths = list(schedule.fed), schedule.widths
    schedule.clear()
    tokens: list[list[int | None]] = [[] for _ in prompts]
    for event in moejax.decode(tiny.model, prompts, params, stream=True):
        tokens[event.index].append(event.token_id)
    assert tokens == [result.token_ids for result in together]
    assert (schedule.fed, schedule.widths) == (fed, widths)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("short", [1, 8, 30])
def test_sequences_that_end_with_their_first_token_make_room(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, short: int, stream: bool
) -> None:
    """More than there are slots, some of which end while prompts are fed."""
    monkeypatch.setattr(engine, "MAX_SEQUENCES", 8)
    prompts = prompts_of([1 + i % 5 for i in range(8 + short)])
    params = [SamplingParams(max_tokens=1 if i < short else 6, ignore_eos=True) for i in range(len(prompts))]
    if stream:
        made = [0] * len(prompts)
        for event in moejax.decode(tiny.model, prompts, params, stream=True):
            made[event.index] += event.token_id is not None
    else:
        made = [len(result.token_ids) for result in moejax.decode(tiny.model, prompts, params)]
    assert made == [one.max_tokens for one in params]


def test_longest_start_first_and_results_stay_in_order(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, schedule: Schedule
) -> None:
    monkeypatch.setattr(engine, "MAX_SEQUENCES", 2)
    counts = [3, 20, 7, 11]
    params = [SamplingParams(max_tokens=count, ignore_eos=True) for count in counts]
    results = moejax.decode(tiny.model, prompts_of([5, 6, 7, 8]), params)
    assert [len(result.token_ids) for result in results] == counts
    assert [prompts for prompts, _, _ in schedule.fed] == [[3, 1], [2], [0]]
    assert schedule.sequence_steps == 2 * 19  # 10 + 6 + 2 beside the longest, and one step in which it is alone


def test_a_call_in_place_writes_into_no_slot_that_is_taken(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, schedule: Schedule
) -> None:
    """Two slots: the first call fills both, in place; those that follow fill one beside a sequence that goes on."""
    monkeypatch.setattr(engine, "MAX_SEQUENCES", 2)
    moejax.decode(tiny.model, prompts_of([5, 6, 7]), [SamplingParams(max_tokens=n, ignore_eos=True) for n in (9, 4, 3)])
    assert [shape.in_place for _, _, shape in schedule.fed] == [True, False]


def test_outputs_of_a_prompt_are_fed_once(tiny: Tiny, schedule: Schedule) -> None:
    moejax.decode(tiny.model, prompts_of([5, 40]), n=3, temperature=1.0, seed=1, max_tokens=4)
    ((prompts, slots, shape),) = schedule.fed
    assert (prompts, slots) == ([1, 0], [3, 4, 5, 0, 1, 2])
    assert (shape.prompts, shape.outputs, shape.one_each) == (2, 8, False)


def test_steps_shrink_with_what_is_left(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, schedule: Schedule) -> None:
    """As soon as a smaller step's program pays, and with the same tokens."""
    prompts, counts = prompts_of([4] * 8), [70, 5, 30, 5, 5, 5, 30, 5]
    params = [SamplingParams(max_tokens=count, ignore_eos=True) for count in counts]
    monkeypatch.setattr(shapes, "SEQUENCE_STEPS_PER_COMPILATION", 1000)
    whole = moejax.decode(tiny.model, prompts, params)
    assert schedule.widths == [8] * 69
    schedule.clear()
    monkeypatch.setattr(shapes, "SEQUENCE_STEPS_PER_COMPILATION", 100)
    model = dataclasses.replace(tiny.model, programs=Programs(tiny.model.parallel.sharding()))
    shrunk = moejax.decode(model, prompts, params)
    assert [result.token_ids for result in shrunk] == [result.token_ids for result in whole]
    # After 4 steps 3 sequences have up to 65 left: (8 - 4) * 65 pays. After 29 one has 40: (4 - 1) * 40 pays.
    assert schedule.widths == [8] * 4 + [4] * 25 + [1] * 40
    assert model.programs.compiled == 5  # empty state, extend, and three of the decode loop


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([(64, 200)], [64]),
        ([(33, 200), (32, 7)], [64, 64]),  # 32 x 7 steps do not pay
        ([(33, 200), (32, 8)], [64, 32]),
        ([(33, 200), (3, 4)], [64, 64]),
        ([(33, 200), (3, 5)], [64, 4]),
        ([(8, 100), (9, 100), (5, 1), (64, 1)], [8, 16, 8, 64]),  # what was compiled is taken at any length
    ],
)
def test_a_smaller_step_has_to_pay(calls: list[tuple[int, int]], expected: list[int]) -> None:
    found = CallShapes(parts=SlotParts(64, 1), length=128, prompt_logprobs=None, prompt_experts=False)
    assert [found.step(range(taken), 1, left).slots for taken, left in calls] == expected


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([512] * 8, [8]),
        ([512] * 3, [3]),  # and padding: 4
        ([128] * 33 + [64] * 31, [32, 1, 31]),  # 8,192 tokens at once, or 4,096 + 128 + 2,048 and two calls more
        ([128] * 32 + [64] * 16, [32, 16]),  # 8,192 with padding, or 4,096 + 1,024
        ([256, 16, 16, 16], [1, 3]),
        ([64, 16, 16, 16], [4]),
    ],
)
def test_prompts_of_other_widths_are_fed_apart_where_it_pays(lengths: list[int], expected: list[int]) -> None:
    found = CallShapes(parts=SlotParts(64, 1), length=1024, prompt_logprobs=None, prompt_experts=False)
    waiting = []
    for slot, length in enumerate(lengths):
        request = Request(index=slot, prompt=[0] * length, params=SamplingParams(), stop_ids=())
        sequence = Sequence(request=request, output=0, tokenizer=None, eos_token_ids=())
        group = SequenceGroup(request=request, sequences=[sequence], slots=[slot])
        waiting.append(Part(group, (sequence,), 0, slot, (slot,)))
    fed = []
    while waiting:
        chosen, shape = found.feed(waiting)
        assert len(chosen) <= shape.prompts and shape.width == len(chosen[0].group.request.prompt)
        waiting = [part for part in waiting if part not in chosen]
        fed.append(len(chosen))
    assert fed == expected


def test_steps_have_a_power_of_two_of_each_part() -> None:
    assert SlotParts(64, 1).sizes == [1, 2, 4, 8, 16, 32, 64]
    assert SlotParts(6, 6).sizes == [6]
    assert SlotParts(18, 3).sizes == [3, 6, 12, 18]
    assert SlotParts(1, 1).sizes == [1]


@pytest.mark.parametrize("mesh", ["data=2,expert=2", "expert=2,tensor=2"])
@pytest.mark.parametrize("dispatch", ["replicated", "gather"])
def test_sequences_come_and_go_on_a_mesh(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mesh: str, dispatch: str
) -> None:
    """Slots that are filled again, and steps that shrink, where the batch is split over devices and where not."""
    prompts, params = everything(tiny)
    alone = [moejax.decode(tiny.model, prompt, one)[0] for prompt, one in zip(prompts, params, strict=True)]
    monkeypatch.setattr(engine, "MAX_SEQUENCES", 4)
    monkeypatch.setattr(shapes, "SEQUENCE_STEPS_PER_COMPILATION", 8)
    load_tiny(tmp_path)
    model = moejax.load(tmp_path, dtype="float32", mesh=mesh, dispatch=dispatch)
    for count in (len(prompts), 4):  # with others that wait, and without
        together = moejax.decode(model, prompts[:count], params[:count])
        assert [result.token_ids for result in together] == [result.token_ids for result in alone[:count]]
    steps = [key[4].slots for key in model.programs.by_key() if isinstance(key, tuple) and key[0] == "generate"]
    assert min(steps) == model.parallel.rules.parts("batch") and max(steps) == 4
