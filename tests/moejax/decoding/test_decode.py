"""Decoding against whole passes over the same tokens, wherever a prompt lies among lengths, buckets and neighbours."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import moejax
from moejax import SamplingParams
from moejax.decoding import engine
from moejax.decoding.requests import Request
from moejax.decoding.sequences import Sequence, SequenceGroup
from moejax.decoding.shapes import CallShapes, FeedShape, Part, SlotParts
from moejax.decoding.slots import Slots
from moejax.runtime import buckets
from moejax.runtime.programs import Programs
from tests.messages import refuses
from tests.moejax.decoding.sampling_oracle import penalized
from tests.moejax.decoding.teacher_forced import check_full_forward, check_greedy
from tests.moejax.decoding.tiny_checkpoint import BASE, Tiny

V = BASE["vocab_size"]
LIMIT = 384  # a cache bucket, so that the longest sequence fills its cache to the last slot
MAX_TOKENS = 20


def prompts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, length).tolist() for length in lengths]


def limited(tiny: Tiny, limit: int) -> Tiny:
    """The same model, programs included, with another max_seq_len."""
    return dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, max_seq_len=limit))


def recompiled(tiny: Tiny) -> Tiny:
    """The same model without compiled programs: for tests that change the sizes that programs are made for."""
    return dataclasses.replace(
        tiny, model=dataclasses.replace(tiny.model, programs=Programs(tiny.model.parallel.sharding()))
    )


# --- cached decode and full forward ---


@pytest.mark.slow
def test_cached_decode_equals_full_forward(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt in a bucket of its own: one token, bucket edges, one more, and the longest that fits."""
    monkeypatch.setattr(buckets, "PREFILL_TOKENS", 1)
    tiny = limited(tiny, LIMIT)
    lengths = [1, 16, 17, 128, 129, LIMIT - MAX_TOKENS]
    results = moejax.decode(
        tiny.model, prompts_of(lengths), max_tokens=MAX_TOKENS, logprobs=V, return_routed_experts=True
    )
    assert [len(result.prompt_token_ids) for result in results] == lengths
    for result in results:
        assert result.outputs[0].logprobs is not None
        assert all(len(entry) == V for entry in result.outputs[0].logprobs)  # so every logit is compared
        check_greedy(tiny, result)
    assert sum(len(set(result.token_ids)) for result in results) > 40
    check_full_forward(tiny, [result.prompt_token_ids + result.token_ids for result in results], LIMIT)
    with refuses(ValueError, "max_tokens=19"):
        moejax.decode(tiny.model, prompts_of([LIMIT - MAX_TOKENS + 1]), max_tokens=MAX_TOKENS)


def test_sliding_window_well_past_the_window(windowed: Tiny) -> None:
    window = windowed.config["sliding_window"]
    lengths = [1, window - 1, window, window + 1, 5 * window, 150]
    params = SamplingParams(max_tokens=40, logprobs=3, return_routed_experts=True)
    results = moejax.decode(windowed.model, prompts_of(lengths), params)
    for result in results:
        check_greedy(windowed, result)
    check_full_forward(windowed, [result.prompt_token_ids + result.token_ids for result in results], 190)
    # What the window hides has no influence, beyond what two layers can carry on: 2 (window - 1) tokens back.
    first, second = prompts_of([150, 150], seed=1)
    second[-2 * window :] = first[-2 * window :]
    one, other = (moejax.logits(windowed.model, [prompt])[0][-1] for prompt in (first, second))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "longest", "logprobs"), [("tiny", 364, V), ("windowed", 150, 3)])
def test_prompts_in_several_chunks(
    name: str, longest: int, logprobs: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is reported of the prompts comes together from the chunks."""
    monkeypatch.setattr(buckets, "PREFILL_CHUNK", 32)
    model = recompiled(request.getfixturevalue(name))
    params = SamplingParams(max_tokens=12, logprobs=logprobs, prompt_logprobs=2, return_routed_experts=True)
    results = moejax.decode(model.model, prompts_of([1, 31, 32, 33, 64, longest]), params)
    for result in results:
        check_greedy(model, result)


def test_prompts_in_several_groups_and_batches(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[list[int]] = []
    feed = Slots.feed

    def noted(slots: Slots, parts: list[Part], shape: FeedShape) -> Any:
        fed.append([part.group.request.index for part in parts])
        return feed(slots, parts, shape)

    monkeypatch.setattr(Slots, "feed", noted)
    monkeypatch.setattr(buckets, "PREFILL_TOKENS", 32)
    monkeypatch.setattr(engine, "MAX_SEQUENCES", 4)
    prompts = prompts_of([3, 16, 9, 2, 12, 2, 14], seed=2)
    results = moejax.decode(tiny.model, prompts, max_tokens=MAX_TOKENS)
    assert fed == [[1, 2], [0, 3], [6, 4], [5]]  # four slots, and three again; each time the longest first
    assert [result.prompt_token_ids for result in results] == prompts
    for result in results:
        check_greedy(tiny, result)


@pytest.mark.parametrize("width", [16, 256, 384, 512, 768])
def test_groups_feed_no_more_tokens_than_they_may(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding included."""
    monkeypatch.setattr(buckets, "PREFILL_TOKENS", 2048)
    shapes = CallShapes(parts=SlotParts(64, 1), length=1024, prompt_logprobs=None, prompt_experts=False)
    waiting = []
    for slot in range(64):
        request = Request(index=slot, prompt=[0] * width, params=SamplingParams(), stop_ids=())
        sequence = Sequence(request=request, output=0, tokenizer=None, eos_token_ids=())
        group = SequenceGroup(request=request, sequences=[sequence], slots=[slot])
        waiting.append(Part(group, (sequence,), 0, slot, (slot,)))
    while waiting:
        chosen, shape = shapes.feed(waiting)
        assert shape.prompts * shape.width <= 2048
        waiting = [part for part in waiting if part not in chosen]


# --- what must not matter ---

REQUESTS: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (16, {"temperature": 1.0, "seed": 3}),
    (129, {"temperature": 1.2, "seed": 3, "top_k": 9, "top_p": 0.9, "repetition_penalty": 1.4, "min_tokens": 2}),
    (17, {"presence_penalty": 1.5, "frequency_penalty": 0.5}),
]


def test_tokens_depend_on_nothing_but_the_request(tiny: Tiny) -> None:
    """Alone or in a batch, in any order, beside rows with other parameters, in any bucket."""
    prompts = prompts_of([length for length, _ in REQUESTS], seed=3)
    params = [SamplingParams(**given, max_tokens=MAX_TOKENS) for _, given in REQUESTS]
    together = [result.token_ids for result in moejax.decode(tiny.model, prompts, params)]
    assert len({tuple(tokens) for tokens in together}) == len(REQUESTS)
    for index, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
        (alone,) = moejax.decode(tiny.model, prompt, one)
        assert alone.token_ids == together[index], REQUESTS[index]
    order = [2, 0, 3, 1]
    shuffled = moejax.decode(tiny.model, [prompts[i] for i in order], [params[i] for i in order])
    assert [result.token_ids for result in shuffled] == [together[i] for i in order]
    twins = moejax.decode(tiny.model, [prompts[1]] * 4, [params[2], params[1], params[3], params[1]])
    assert [twins[1].token_ids, twins[3].token_ids] == [together[1]] * 2
    (longer,) = moejax.decode(tiny.model, prompts[0], max_tokens=buckets.STEPS_PER_CALL + 40)
    assert longer.token_ids[:MAX_TOKENS] == together[0]
    check_greedy(tiny, longer)


def test_seed_decides_the_sample_and_nothing_else_does(tiny: Tiny) -> None:
    prompt = [5, 80, 12]
    params = SamplingParams(temperature=1.0, max_tokens=MAX_TOKENS)
    seeded = [moejax.decode(tiny.model, prompt, params, seed=seed)[0].token_ids for seed in (7, 7, 8, 2**63 - 1)]
    assert seeded[0] == seeded[1]
    unseeded = [moejax.decode(tiny.model, prompt, params)[0].token_ids for _ in range(2)]
    assert len({tuple(tokens) for tokens in [*seeded, *unseeded]}) == 5
    twice = moejax.decode(tiny.model, [prompt, prompt], params, seed=7)
    assert [result.token_ids for result in twice] == [seeded[0], seeded[0]]


def test_penalties_are_of_the_prompt_and_of_all_the_output(tiny: Tiny) -> None:
    """Greedy: each token is the best of the logits that the oracle penalises with all tokens before."""
    params = [
        SamplingParams(max_tokens=40, repetition_penalty=3.0),
        SamplingParams(max_tokens=40, repetition_penalty=0.8),
        SamplingParams(max_tokens=40, presence_penalty=2.0, frequency_penalty=0.1),
        SamplingParams(max_tokens=40, frequency_penalty=2.0),
    ]
    prompts = prompts_of([16, 9, 12, 2], seed=6)
    for result, one in zip(moejax.decode(tiny.model, prompts, params), params, strict=True):
        prompt, tokens = result.prompt_token_ids, result.token_ids
        logits = tiny.reference([*prompt, *tokens]).logits[len(prompt) - 1 : -1]
        rows = enumerate(logits)
        assert tokens == [int(penalized(row, prompt, tokens[:place], one).argmax()) for place, row in rows]
        assert tokens != logits.argmax(axis=1).tolist()


# --- several outputs ---


def test_outputs_of_one_prompt(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of([5, 8], seed=4)
    params = SamplingParams(temperature=1.0, max_tokens=MAX_TOKENS, seed=11)
    (three,) = moejax.decode(tiny.model, prompts[0], params, n=3)
    assert [output.index for output in three.outputs] == [0, 1, 2]
    tokens = [output.token_ids for output in three.outputs]
    assert len({tuple(one) for one in tokens}) == 3
    assert three.token_ids == tokens[0]
    (one,) = moejax.decode(tiny.model, prompts[0], params)
    (two,) = moejax.decode(tiny.model, prompts[0], params, n=2)
    assert [output.token_ids for output in [*one.outputs, *two.outputs]] == [tokens[0], *tokens[:2]]
    beside = moejax.decode(tiny.model, [*reversed(prompts)], [params, dataclasses.replace(params, n=3)])
    assert [len(result.outputs) for result in beside] == [1, 3]
    assert [output.token_ids for output in beside[1].outputs] == tokens
    monkeypatch.setattr(engine, "MAX_SEQUENCES", 2)  # outputs of one prompt in different batches
    (apart,) = moejax.decode(tiny.model, prompts[0], params, n=3)
    assert [output.token_ids for output in apart.outputs] == tokens
    assert apart.stats.generated_tokens == 3 * MAX_TOKENS


# --- ways to give prompts and parameters ---


def test_forms_of_prompts(tiny: Tiny) -> None:
    assert tiny.model.tokenizer is not None
    text = "the list é"
    ids = tiny.model.tokenizer.encode(text)
    expected = moejax.decode(tiny.model, ids, max_tokens=8)[0].token_ids
    single: list[Any] = [text, ids, tuple(ids), np.array(ids), np.array(ids, np.uint16), [np.int64(i) for i in ids]]
    for prompt in single:
        (result,) = moejax.decode(tiny.model, prompt, max_tokens=8)
        assert result.prompt_token_ids == ids
        assert all(type(i) is int for i in result.prompt_token_ids)
        assert result.token_ids == expected
    several: list[Any] = [[text, ids, np.array(ids)], np.array([ids, ids, ids]), ([*ids], text, tuple(ids))]
    for prompts in several:
        results = moejax.decode(tiny.model, prompts, max_tokens=8)
        assert [result.token_ids for result in results] == [expected] * 3


def test_parameters_one_for_all_or_one_each(tiny: Tiny) -> None:
    prompts = prompts_of([4, 6, 2], seed=5)
    lengths = [3, 1, 7]
    each = [SamplingParams(max_tokens=length, logprobs=length) for length in lengths]
    for params in (each, tuple(each)):
        results = moejax.decode(tiny.model, prompts, params)
        assert [len(result.token_ids) for result in results] == lengths
    for result, length in zip(results, lengths, strict=True):
        assert result.logprobs is not None
        assert {len(entry) for entry in result.logprobs} == {length}
    assert [len(r.token_ids) for r in moejax.decode(tiny.model, prompts, each[2])] == [7, 7, 7]
    mixed: list[Any] = [None, *each[1:]]
    results = moejax.decode(tiny.model, prompts, mixed, max_tokens=5)
    assert [len(result.token_ids) for result in results] == [5, 5, 5]
    assert [result.logprobs is None for result in results] == [True, False, False]
