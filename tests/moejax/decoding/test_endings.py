"""How an output ends: EOS, stop tokens, stop strings, max_tokens; and what may not end it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moejax
from moejax import DecodeResult, SamplingParams
from moejax.decoding.requests import make_requests
from moejax.decoding.sequences import make_sequences
from tests.moejax.decoding.tiny_checkpoint import Tiny

PROMPTS: list[list[int] | str] = ["a list é, 5", [68, 15], "日本", [222]]
MAX_TOKENS = 40


@dataclass(frozen=True, kw_only=True)
class Unstopped:
    """What each prompt gives when nothing ends it but max_tokens.

    released: after each token, how much text has been released. What is still held then, an unfinished character, is
    not searched for stop strings.
    """

    model: moejax.Model
    results: list[DecodeResult]
    released: list[list[int]]


def run_unstopped(model: moejax.Model, prompts: Sequence[list[int] | str], max_tokens: int) -> Unstopped:
    results = moejax.decode(model, prompts, max_tokens=max_tokens, ignore_eos=True)
    texts: list[list[str]] = [[] for _ in prompts]
    # One token more, so that the last token's text is without what the end of the output releases.
    for event in moejax.decode(model, prompts, max_tokens=max_tokens + 1, ignore_eos=True, stream=True):
        texts[event.index].append(event.text)
    lengths = [np.cumsum([len(text) for text in parts[:max_tokens]]).tolist() for parts in texts]
    return Unstopped(model=model, results=results, released=lengths)


@pytest.fixture(scope="module")
def unstopped(tiny: Tiny) -> Unstopped:
    result = run_unstopped(tiny.model, PROMPTS, MAX_TOKENS)
    text = "".join(one.text for one in result.results)
    assert sum(0x7F < ord(character) < 0xFFFD for character in text) > 5  # characters that are several tokens
    return result


def with_eos(model: moejax.Model, *ids: int) -> moejax.Model:
    """The same model, programs included, with other EOS tokens."""
    return dataclasses.replace(model, eos_token_ids=ids)


def cut_at(tokens: list[int], stops: set[int]) -> tuple[list[int], bool]:
    """The tokens up to the first stop, and whether there is one."""
    first = next((i for i, token in enumerate(tokens) if token in stops), None)
    return (tokens, False) if first is None else (tokens[: first + 1], True)


def text_before_last(unstopped: Unstopped, tokens: Sequence[list[int]]) -> list[str]:
    """The text of every output but its last token, from calls that end there for lack of max_tokens."""
    params = [SamplingParams(max_tokens=max(1, len(one) - 1)) for one in tokens]
    results = moejax.decode(unstopped.model, PROMPTS, params)
    return ["" if len(one) == 1 else result.text for one, result in zip(tokens, results, strict=True)]


# --- EOS and stop tokens ---


def test_eos_ends_each_row_by_itself(unstopped: Unstopped) -> None:
    tokens = [result.token_ids for result in unstopped.results]
    stops = {tokens[0][5], tokens[1][0], tokens[2][11]}
    expected = [cut_at(one, stops) for one in tokens]
    assert len({len(one) for one, _ in expected}) >= 3
    results = moejax.decode(with_eos(unstopped.model, *stops), PROMPTS, max_tokens=MAX_TOKENS)
    for result, (cut, found), text in zip(
        results, expected, text_before_last(unstopped, [cut for cut, _ in expected]), strict=True
    ):
        assert result.token_ids == cut
        assert (result.finish_reason, result.stop_reason) == ("stop" if found else "length", None)
        if found:
            assert result.text == text  # EOS has no text
        assert result.stats.generated_tokens == len(cut)


def test_ignored_eos_is_a_token_like_others(unstopped: Unstopped) -> None:
    model = with_eos(unstopped.model, unstopped.results[0].token_ids[5])
    stopped, ignoring = (SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=ignore) for ignore in (False, True))
    results = moejax.decode(model, PROMPTS, [stopped, ignoring, ignoring, ignoring])
    assert len(results[0].token_ids) == 6
    results[:1] = moejax.decode(model, PROMPTS[:1], ignoring)
    for result, free in zip(results, unstopped.results, strict=True):
        assert (result.token_ids, result.text, result.finish_reason) == (free.token_ids, free.text, "length")


def test_stop_tokens_belong_to_their_request(unstopped: Unstopped) -> None:
    tokens = [result.token_ids for result in unstopped.results]
    eos = tokens[3][9]
    # The third also names EOS; the fourth ignores EOS and names it: then it is a stop token like others.
    own = [{tokens[0][7], tokens[0][12]}, {tokens[1][20]}, {tokens[2][3], eos}, {eos}]
    params = [
        SamplingParams(max_tokens=MAX_TOKENS, stop_token_ids=sorted(ids), ignore_eos=i == 3)
        for i, ids in enumerate(own)
    ]
    expected = [cut_at(one, ids | {eos}) for one, ids in zip(tokens, own, strict=True)]
    results = moejax.decode(with_eos(unstopped.model, eos), PROMPTS, params)
    texts = text_before_last(unstopped, [cut for cut, _ in expected])
    for i, (result, (cut, found)) in enumerate(zip(results, expected, strict=True)):
        assert found and result.token_ids == cut
        assert result.finish_reason == "stop"
        assert result.stop_reason == (None if cut[-1] == eos and i < 3 else cut[-1])
        assert result.text == texts[i]
    assert results[3].stop_reason == eos


def test_text_of_the_token_that_ends_the_output_is_kept_if_asked(unstopped: Unstopped) -> None:
    tokens = [result.token_ids for result in unstopped.results]
    cuts = [cut_at(one, {one[10]})[0] for one in tokens]
    params = [
        SamplingParams(max_tokens=MAX_TOKENS, stop_token_ids=[cut[-1]], include_stop_str_in_output=True) for cut in cuts
    ]
    results = moejax.decode(unstopped.model, PROMPTS, params)
    whole = moejax.decode(unstopped.model, PROMPTS, [SamplingParams(max_tokens=len(cut)) for cut in cuts])
    assert [result.token_ids for result in results] == cuts
    assert [result.text for result in results] == [result.text for result in whole]


def test_special_tokens_are_text_if_asked(tiny: Tiny) -> None:
    tokenizer = tiny.model.tokenizer
    assert tokenizer is not None
    special = {tokenizer.bos_id, tokenizer.eos_id}
    prompts = ([i] for i in range(300) if tokenizer.token_text(i).isalpha())
    prompt = next(p for p in prompts if special & set(moejax.decode(tiny.model, p, max_tokens=MAX_TOKENS)[0].token_ids))
    before = len(tokenizer.decode(prompt))
    texts = []
    for skip in (True, False):
        (result,) = moejax.decode(tiny.model, prompt, max_tokens=MAX_TOKENS, skip_special_tokens=skip)
        texts.append(result.text)
        assert result.text == tokenizer.decode([*prompt, *result.token_ids], skip_special_tokens=skip)[before:]
    assert "s>" not in texts[0] and "s>" in texts[1]


def test_end_releases_the_text_that_was_held_back(tiny: Tiny) -> None:
    """An unfinished character, as U+FFFD: whatever max_tokens cuts, the text is what the tokenizer makes of the ids."""
    tokenizer = tiny.model.tokenizer
    assert tokenizer is not None
    prompt, cuts = tokenizer.encode("a list"), range(1, MAX_TOKENS + 1)
    params = [SamplingParams(max_tokens=cut) for cut in cuts]
    before, held = len(tokenizer.decode(prompt)), 0
    for start in range(0, len(params), 4):
        for result in moejax.decode(tiny.model, [prompt] * 4, params[start : start + 4]):
            ids = [*prompt, *result.token_ids]
            assert result.text == tokenizer.decode(ids)[before:]
            held += tokenizer.unfinished(tokenizer.pieces(ids, skip_special_tokens=True))
    assert held > 2


def test_character_that_the_prompt_begins_belongs_to_the_output(tiny: Tiny) -> None:
    tokenizer = tiny.model.tokenizer
    assert tokenizer is not None
    prompt = tokenizer.encode("a日")[:-1]
    (result,) = moejax.decode(tiny.model, prompt, max_tokens=MAX_TOKENS)
    assert "a" + result.text == tokenizer.decode([*prompt, *result.token_ids])
    assert result.text != tokenizer.decode(result.token_ids)


# --- min_tokens and max_tokens ---


def test_no_stop_before_min_tokens(tiny: Tiny, unstopped: Unstopped) -> None:
    """Until then the best token that is no stop is taken; the rows beside are not touched."""
    stops = {token for result in unstopped.results for token in result.token_ids[2:4]}
    model = with_eos(tiny.model, *sorted(stops)[::2])
    params = [
        SamplingParams(max_tokens=MAX_TOKENS, min_tokens=least, stop_token_ids=sorted(stops)[1::2])
        for least in (0, 1, 7, MAX_TOKENS)
    ]
    results = moejax.decode(model, PROMPTS, params)
    for result, one in zip(results, params, strict=True):
        prompt, tokens = result.prompt_token_ids, result.token_ids
        logits = tiny.reference([*prompt, *tokens]).logits[len(prompt) - 1 : -1]
        early = np.arange(len(tokens))[:, None] < one.min_tokens
        allowed = np.where(early & np.isin(np.arange(logits.shape[1]), list(stops)), -np.inf, logits)
        assert tokens == allowed.argmax(axis=1).tolist()
        assert len(tokens) >= one.min_tokens
        assert stops.isdisjoint(tokens[: one.min_tokens])
        assert (tokens[-1] in stops) == (result.finish_reason == "stop")
    assert [result.finish_reason for result in results].count("stop") >= 2
    assert len(results[3].token_ids) == MAX_TOKENS


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_max_tokens(unstopped: Unstopped, max_tokens: int) -> None:
    for result, free in zip(
        moejax.decode(unstopped.model, PROMPTS, max_tokens=max_tokens), unstopped.results, strict=True
    ):
        assert result.token_ids == free.token_ids[:max_tokens]
        assert (result.finish_reason, result.stop_reason) == ("length", None)


def test_stop_with_the_last_token_is_a_stop(unstopped: Unstopped) -> None:
    tokens = unstopped.results[0].token_ids
    last = next(i for i, token in enumerate(tokens) if i > 3 and token not in tokens[:i])
    (result,) = moejax.decode(unstopped.model, PROMPTS[:1], max_tokens=last + 1, stop_token_ids=[tokens[last]])
    assert (result.token_ids, result.finish_reason) == (tokens[: last + 1], "stop")
    end = unstopped.released[0][last]
    stop = unstopped.results[0].text[end - 2 : end]
    (result,) = moejax.decode(unstopped.model, PROMPTS[:1], max_tokens=last + 1, stop=stop)
    assert (result.finish_reason, result.stop_reason) == ("stop", stop)


# --- stop strings ---


def check_stop_strings(unstopped: Unstopped, index: int, stops: Sequence[str], params: SamplingParams) -> None:
    """A prompt with stop strings, streamed and not, against its unstopped text cut by definition."""
    free, released = unstopped.results[index], unstopped.released[index]
    unchecked = released[params.min_tokens - 2] if params.min_tokens > 1 else 0
    ends = (end for end in range(unchecked + 1, released[-1] + 1) if free.text[:end].endswith(tuple(stops)))
    expected = (free.text, free.token_ids, "length", None)
    if end := next(ends, None):
        stop = max((stop for stop in stops if free.text[:end].endswith(stop)), key=len)
        tokens = next(count for count, length in enumerate(released, start=1) if length >= end)
        text = free.text[: end if params.include_stop_str_in_output else end - len(stop)]
        expected = (text, free.token_ids[:tokens], "stop", stop)
    prompt = free.prompt_token_ids
    (result,) = moejax.decode(unstopped.model, prompt, params, stop=stops)
    assert (result.text, result.token_ids, result.finish_reason, result.stop_reason) == expected
    events = list(moejax.decode(unstopped.model, prompt, params, stop=stops, stream=True))
    assert "".join(event.text for event in events) == expected[0]
    assert [event.token_id for event in events if event.token_id is not None] == expected[1]
    assert (events[-1].finish_reason, events[-1].stop_reason) == expected[2:]


def substrings(text: str, most: int) -> st.SearchStrategy[str]:
    places = st.tuples(st.integers(0, len(text) - 1), st.integers(1, most))
    return places.map(lambda place: text[place[0] : place[0] + place[1]])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), include=st.booleans(), min_tokens=st.sampled_from([0, 0, 1, 5, 20]))
def test_stop_strings(unstopped: Unstopped, data: st.DataObject, include: bool, min_tokens: int) -> None:
    index = data.draw(st.integers(0, len(PROMPTS) - 1))
    text = unstopped.results[index].text
    stops = data.draw(st.lists(substrings(text, 6) | st.sampled_from(["zz", "é€"]), min_size=1, max_size=3))
    params = SamplingParams(max_tokens=MAX_TOKENS, include_stop_str_in_output=include, min_tokens=min_tokens)
    check_stop_strings(unstopped, index, stops, params)


@pytest.fixture(scope="module")
def unstopped_demo() -> Unstopped:
    return run_unstopped(moejax.load("demo"), ["The import statement"], 48)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), include=st.booleans())
def test_stop_strings_of_real_text(unstopped_demo: Unstopped, data: st.DataObject, include: bool) -> None:
    (free,) = unstopped_demo.results
    stops = data.draw(st.lists(substrings(free.text, 12), min_size=1, max_size=2))
    check_stop_strings(
        unstopped_demo, 0, stops, SamplingParams(max_tokens=48, include_stop_str_in_output=include, ignore_eos=True)
    )


def test_rows_with_and_without_stop_strings(unstopped: Unstopped) -> None:
    texts = [result.text for result in unstopped.results]
    stop = texts[2][4:6]
    params = [SamplingParams(max_tokens=MAX_TOKENS, stop=stop if i == 2 else ()) for i in range(4)]
    results = moejax.decode(unstopped.model, PROMPTS, params)
    assert [result.stop_reason for result in results] == [None, None, stop, None]
    assert results[2].text == texts[2][: texts[2].index(stop)]
    for i in (0, 1, 3):
        assert results[i].text == texts[i]


# --- stop strings with special tokens ---


@pytest.mark.parametrize(
    ("stop", "shown", "text", "reason"),
    [
        ("b</s>", False, "a ", "b</s>"),
        ("</s>", False, "a b", "</s>"),
        ("</s>", True, "a b</s>", "</s>"),
        ("x", False, "a b", None),
        ("x", True, "a b</s>", None),
    ],
)
def test_stop_string_that_the_eos_token_completes(
    tiny: Tiny, stop: str, shown: bool, text: str, reason: str | None
) -> None:
    model = with_eos(tiny.model, 1)
    assert model.tokenizer is not None
    params = SamplingParams(max_tokens=9, stop=[stop], include_stop_str_in_output=shown, skip_special_tokens=False)
    (request,) = make_requests(model, [[5]], params, {})
    (sequence,) = make_sequences(model, request)
    for token in [model.tokenizer.ids[piece] for piece in ("a", "\u0120", "b", "</s>")]:
        assert sequence.finish_reason is None
        sequence.push(token, None)
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", reason)
    assert sequence.result(None).text == text
