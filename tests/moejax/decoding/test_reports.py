"""What is reported beside the tokens: log-probabilities of output and prompt, and routed experts."""

import numpy as np
import pytest

import moejax
from moejax import DecodeResult, SamplingParams
from tests.moejax.decoding.numpy_mixtral import log_softmax
from tests.moejax.decoding.teacher_forced import LOGITS_ATOL, check_greedy, check_logprobs
from tests.moejax.decoding.tiny_checkpoint import BASE, Tiny

V = BASE["vocab_size"]
PROMPTS = [[5, 80, 12, 44, 7], [68], [222, 15, 15, 3, 9, 9, 1]]
MAX_TOKENS = 12
PARAMS = [
    SamplingParams(max_tokens=MAX_TOKENS, logprobs=3, prompt_logprobs=5, return_routed_experts=True),
    SamplingParams(max_tokens=MAX_TOKENS, logprobs=0, prompt_logprobs=2, return_routed_experts=True),
    SamplingParams(max_tokens=MAX_TOKENS, logprobs=5, prompt_logprobs=0),
]


@pytest.fixture(scope="module")
def everything(tiny: Tiny) -> list[DecodeResult]:
    """Greedy results with different reports for each prompt."""
    return moejax.decode(tiny.model, PROMPTS, PARAMS)


def test_reports_equal_a_pass_over_all_tokens(tiny: Tiny, everything: list[DecodeResult]) -> None:
    for result in everything:
        check_greedy(tiny, result)
        assert result.logprobs is result.outputs[0].logprobs
        assert result.routed_experts is result.outputs[0].routed_experts


def test_logprobs_are_the_best_and_the_chosen_token(tiny: Tiny, everything: list[DecodeResult]) -> None:
    assert tiny.model.tokenizer is not None
    for result, best in zip(everything, (3, 0, 5), strict=True):
        assert result.logprobs is not None
        for entry, token in zip(result.logprobs, result.token_ids, strict=True):
            assert len(entry) == max(1, best)  # greedy: the chosen token is the best one
            assert entry[token].rank == 1
            assert sorted(one.rank for one in entry.values()) == list(range(1, len(entry) + 1))
            by_rank = sorted(entry.values(), key=lambda one: one.rank)
            assert all(a.logprob >= b.logprob for a, b in zip(by_rank, by_rank[1:], strict=False))
            for i, one in entry.items():
                assert one.decoded_token == tiny.model.tokenizer.token_text(i)


def test_prompt_logprobs(tiny: Tiny, everything: list[DecodeResult]) -> None:
    for result, best in zip(everything, (5, 2, 0), strict=True):
        prompt = result.prompt_token_ids
        assert result.prompt_logprobs is not None
        assert result.prompt_logprobs[0] is None
        assert len(result.prompt_logprobs) == len(prompt)
        logits = moejax.logits(tiny.model, [prompt])[0]
        for place, entry in enumerate(result.prompt_logprobs[1:], start=1):
            assert entry is not None
            ranked = np.argsort(-logits[place - 1])
            assert set(entry) == {*ranked[:best].tolist(), prompt[place]}
            assert entry[prompt[place]].rank == 1 + ranked.tolist().index(prompt[place])
            np.testing.assert_allclose(
                entry[prompt[place]].logprob, log_softmax(logits[place - 1])[prompt[place]], atol=LOGITS_ATOL
            )


def test_logprobs_of_samples_are_from_the_raw_logits(tiny: Tiny) -> None:
    """Before penalties, temperature, filters and forbidden stops; the sampled token has its true rank."""
    params = SamplingParams(
        temperature=2.0,
        top_k=20,
        repetition_penalty=1.7,
        presence_penalty=1.0,
        seed=5,
        n=2,
        min_tokens=3,
        stop_token_ids=[66],
        logprobs=2,
        max_tokens=MAX_TOKENS,
        return_routed_experts=True,
    )
    (result,) = moejax.decode(tiny.model, PROMPTS[2], params)
    prompt, ranks = result.prompt_token_ids, set()
    for output in result.outputs:
        reference = tiny.reference([*prompt, *output.token_ids])
        logprobs = reference.logprobs[len(prompt) - 1 : -1]
        assert output.logprobs is not None
        check_logprobs(output.logprobs, output.token_ids, logprobs)
        for entry, token, expected in zip(output.logprobs, output.token_ids, logprobs, strict=True):
            assert set(entry) == {*np.argsort(-expected)[:2].tolist(), token}
            ranks.add(entry[token].rank)
        chosen = [entry[token].logprob for entry, token in zip(output.logprobs, output.token_ids, strict=True)]
        assert output.cumulative_logprob == pytest.approx(sum(chosen))
        np.testing.assert_array_equal(output.routed_experts, reference.experts[:-1])
    assert max(ranks) > 3


def test_reports_only_where_asked(tiny: Tiny, everything: list[DecodeResult]) -> None:
    assert everything[2].routed_experts is None
    (result,) = moejax.decode(tiny.model, PROMPTS[0], max_tokens=2)
    output = result.outputs[0]
    assert result.prompt_logprobs is None
    assert (output.logprobs, output.cumulative_logprob, output.routed_experts) == (None, None, None)
    (result,) = moejax.decode(tiny.model, PROMPTS[1], max_tokens=2, prompt_logprobs=V, logprobs=V)
    assert result.prompt_logprobs == [None]  # one token: nothing came before it


def test_routed_experts_are_those_of_every_token_fed(tiny: Tiny, everything: list[DecodeResult]) -> None:
    for result in everything[:2]:
        experts = result.routed_experts
        assert experts is not None
        fed = len(result.prompt_token_ids) + MAX_TOKENS - 1
        assert experts.shape == (fed, BASE["num_hidden_layers"], BASE["num_experts_per_tok"])
        assert np.issubdtype(experts.dtype, np.integer)
        assert experts.min() >= 0 and experts.max() < BASE["num_local_experts"]
        assert np.all(experts[..., 0] != experts[..., 1])
    (one, *_) = moejax.decode(tiny.model, PROMPTS, PARAMS, max_tokens=1)
    assert everything[0].routed_experts is not None
    np.testing.assert_array_equal(one.routed_experts, everything[0].routed_experts[: len(PROMPTS[0])])


def test_expert_rows_count_the_routed_experts_of_the_whole_call(tiny: Tiny) -> None:
    """Of a prompt once, however many outputs it has, and of every token that an output fed."""
    params = SamplingParams(temperature=1.0, seed=3, n=2, max_tokens=6, ignore_eos=True, return_routed_experts=True)
    results = moejax.decode(tiny.model, PROMPTS, params)
    fed = []
    for result in results:
        length = len(result.prompt_token_ids)
        for output in result.outputs:
            assert output.routed_experts is not None
            fed.append(output.routed_experts[0 if output.index == 0 else length :])
    experts = np.concatenate(fed)
    counts = [np.bincount(layer.ravel(), minlength=BASE["num_local_experts"]) for layer in experts.swapaxes(0, 1)]
    for result in results:
        assert result.stats.expert_rows == tuple(tuple(layer.tolist()) for layer in counts)


@pytest.mark.parametrize("best", [V - 1, V])
def test_as_many_logprobs_as_there_are_tokens(tiny: Tiny, best: int) -> None:
    (result,) = moejax.decode(tiny.model, PROMPTS[0], max_tokens=2, logprobs=best, prompt_logprobs=best)
    check_greedy(tiny, result)
    assert result.logprobs is not None and result.prompt_logprobs is not None
    assert [len(entry) for entry in result.logprobs] == [best] * 2
    assert all(best <= len(entry) <= best + 1 for entry in result.prompt_logprobs if entry is not None)


def test_reports_of_outputs_cut_by_a_stop_string(tiny: Tiny, everything: list[DecodeResult]) -> None:
    """What the device computed beyond the stop is not reported."""
    stop = everything[0].text[4:6]
    result = moejax.decode(tiny.model, PROMPTS, PARAMS, stop=stop)[0]
    assert result.stop_reason == stop
    assert len(result.token_ids) < MAX_TOKENS
    check_greedy(tiny, result)
