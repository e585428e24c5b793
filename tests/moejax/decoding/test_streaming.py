"""Streams: the same tokens, text and reports as without, one event per token, in order, as they are made."""

import dataclasses
import time
from typing import Any

import pytest

import moejax
from moejax import DecodeEvent, SamplingParams
from moejax.runtime.programs import Programs
from tests.moejax.decoding.tiny_checkpoint import Tiny

PROMPTS: list[list[int] | str] = ["the list é", [68, 15], [222]]
PARAMS = [
    SamplingParams(max_tokens=21, logprobs=2),
    SamplingParams(max_tokens=9, temperature=1.0, seed=4, n=2),
    SamplingParams(max_tokens=30, stop_token_ids=[114], logprobs=0, temperature=1.0, seed=2, n=3),
]


def test_stream_equals_results(tiny: Tiny) -> None:
    results = moejax.decode(tiny.model, PROMPTS, PARAMS)
    events = list(moejax.decode(tiny.model, PROMPTS, PARAMS, stream=True))
    grouped: dict[tuple[int, int], list[DecodeEvent]] = {}
    for event in events:
        grouped.setdefault((event.index, event.output), []).append(event)
    assert sorted(grouped) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    for (index, number), own in grouped.items():
        output = results[index].outputs[number]
        assert [event.token_id for event in own] == output.token_ids
        assert "".join(event.text for event in own) == output.text
        assert [event.logprob for event in own] == (output.logprobs or [None] * len(own))
        for event in own[:-1]:
            assert (event.finish_reason, event.stop_reason, event.stats) == (None, None, None)
        assert (own[-1].finish_reason, own[-1].stop_reason) == (output.finish_reason, output.stop_reason)
        stats = own[-1].stats
        assert stats is not None
        assert stats.prompt_tokens == len(results[index].prompt_token_ids)
        assert stats.padded_rows == results[index].stats.padded_rows == 2
    finished = [event.index for event in events if event.finish_reason is not None]
    assert len(finished) == 6 and finished[0] != finished[-1]
    last = {index: [event for event in events if event.index == index][-1].stats for index in range(3)}
    for index, stats in last.items():  # by the last event of a prompt, all its tokens are counted
        assert stats is not None and stats.generated_tokens == results[index].stats.generated_tokens


def test_events_of_a_step_come_in_the_order_of_the_prompts(tiny: Tiny) -> None:
    events = list(moejax.decode(tiny.model, [[1], [2, 3, 4], [5, 6]], max_tokens=4, stream=True))
    assert sorted(event.index for event in events[:3]) == [0, 1, 2]  # first tokens, as the prompts were fed
    assert [event.index for event in events[3:]] == [0, 1, 2] * 3


def test_tokens_are_handed_out_as_they_are_made(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    call = Programs.call
    monkeypatch.setattr(
        Programs,
        "call",
        lambda self, key, *args, **options: (called.append(key[0]), call(self, key, *args, **options))[1],
    )
    stream = moejax.decode(tiny.model, "a list", max_tokens=8, stream=True)
    next(stream)
    assert "extend" in called and "generate" not in called
    next(stream)
    assert called.count("generate") == 1  # of few steps: the others have not been computed
    assert len(list(stream)) == 6
    assert called.count("generate") > 1


def test_abandoned_stream_leaves_the_model_as_it_was(tiny: Tiny) -> None:
    expected = [result.token_ids for result in moejax.decode(tiny.model, PROMPTS, max_tokens=20)]
    compiled = tiny.model.programs.compiled
    for taken in (0, 1, 7):
        stream: Any = moejax.decode(tiny.model, PROMPTS, max_tokens=20, stream=True)
        for _ in range(taken):
            next(stream)
        stream.close()
        assert list(stream) == []
    first: Any = moejax.decode(tiny.model, PROMPTS, max_tokens=20, stream=True)
    next(first)  # left open while others run
    assert [result.token_ids for result in moejax.decode(tiny.model, PROMPTS, max_tokens=20)] == expected
    tokens: list[list[int | None]] = [[], [], []]
    for event in moejax.decode(tiny.model, PROMPTS, max_tokens=20, stream=True):
        tokens[event.index].append(event.token_id)
    assert tokens == expected
    assert sum(1 for _ in first) == 3 * 20 - 1
    assert tiny.model.programs.compiled == compiled


def test_misuse_is_told_by_the_call_and_not_by_the_first_event(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="^prompt 1 is empty"):
        moejax.decode(tiny.model, ["a", ""], stream=True)
    with pytest.raises(ValueError, match="^unknown sampling parameter"):
        moejax.decode(tiny.model, "a", stream=True, temperatur=1)


def test_time_of_a_slow_reader_is_not_decoding_time(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader takes 1000 seconds (of a clock that the test moves on) for each event."""
    moejax.decode(tiny.model, [[68]], max_tokens=12)  # compiles
    now, reading = time.perf_counter, 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now() + reading)
    stats = None
    for event in moejax.decode(tiny.model, [[68]], max_tokens=12, stream=True):
        reading += 1000
        stats = event.stats
    assert stats is not None
    assert 0 < stats.decode_seconds < 1000
    assert stats.ttft_seconds < 1000


def test_tokens_are_streamed_without_a_tokenizer(tiny: Tiny) -> None:
    model = dataclasses.replace(tiny.model, tokenizer=None)
    (result,) = moejax.decode(model, [68, 15], max_tokens=8)
    events = list(moejax.decode(model, [68, 15], max_tokens=8, stream=True))
    assert [event.token_id for event in events] == result.token_ids
    assert {event.text for event in events} == {result.text} == {""}
