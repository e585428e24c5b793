"""The official `openai` client against a live server; what it returns is what `decode` returns."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

import moejax
from moejax.text.chat import encode_chat
from tests.messages import refuses
from tests.moejax.serving.live import WAIT_SECONDS, Live

PROMPT = "the import statement"
MESSAGES: Any = [{"role": "user", "content": "a list is"}]


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=WAIT_SECONDS) as one:
        yield one


def alone(live: Live, prompt: object, **params: object) -> "moejax.DecodeResult":
    (result,) = moejax.decode(live.model, prompt, **{"max_tokens": 12, **params})  # type: ignore[arg-type]
    return result


def test_models(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "moejax"
    with refuses(openai.NotFoundError, "'tiny'"):
        client.models.retrieve("gpt-4")


def test_completion(client: openai.OpenAI, live: Live) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=12)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (alone(live, PROMPT).text, "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 12, 19)
    assert answer.object == "text_completion"


def test_completion_of_several_prompts_of_either_kind(client: openai.OpenAI, live: Live) -> None:
    for prompts in (["the list", "é"], [[5, 6], [7]], [9, 8, 7]):
        answer = client.completions.create(model="tiny", prompt=prompts, temperature=0, max_tokens=12)
        expected = moejax.decode(live.model, prompts, max_tokens=12)
        assert [choice.text for choice in answer.choices] == [one.text for one in expected]
        assert [choice.index for choice in answer.choices] == list(range(len(expected)))


def test_defaults_are_openais(client: openai.OpenAI, live: Live) -> None:
    """Temperature 1, 16 tokens of a completion; a chat goes on to the end of the context."""
    answer = client.completions.create(model="tiny", prompt=PROMPT, seed=3)
    assert answer.choices[0].text == alone(live, PROMPT, temperature=1.0, seed=3, max_tokens=16).text
    chat = client.chat.completions.create(model="tiny", messages=MESSAGES, seed=3)  # type: ignore[arg-type]
    assert chat.usage is not None
    assert chat.usage.total_tokens == live.model.max_seq_len


@pytest.mark.parametrize("given", [{"max_tokens": 12}, {"max_completion_tokens": 12}])
def test_chat(client: openai.OpenAI, live: Live, given: dict[str, int]) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, **given)  # type: ignore
    assert live.model.tokenizer is not None
    expected = alone(live, encode_chat(live.model.tokenizer, MESSAGES))
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a list"}, {"type": "text", "text": " is"}]}]
    again = client.chat.completions.create(model="tiny", messages=parts, temperature=0, **given)  # type: ignore
    assert again.choices[0].message.content == expected.text


def test_stream_of_a_completion(client: openai.OpenAI, live: Live) -> None:
    chunks = list(
        client.completions.create(
            model="tiny",
            prompt=["the list", PROMPT],
            temperature=0,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *chunks, last = chunks
    for index, prompt in enumerate(["the list", PROMPT]):
        mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.text for choice in mine) == alone(live, prompt).text
        assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["length"]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 24
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_of_a_chat(client: openai.OpenAI, live: Live) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=12, stream=True, logprobs=True, top_logprobs=2
    )  # type: ignore[call-overload]
    choices: list[Any] = [chunk.choices[0] for chunk in stream]
    assert live.model.tokenizer is not None
    expected = alone(live, encode_chat(live.model.tokenizer, MESSAGES))
    assert "".join(choice.delta.content for choice in choices) == expected.text
    assert [choice.delta.role for choice in choices] == ["assistant", *[None] * (len(choices) - 1)]
    assert sum(len(choice.logprobs.content) for choice in choices) == 12


def test_n_and_seed(client: openai.OpenAI, live: Live) -> None:
    asked = {"n": 3, "seed": 11, "temperature": 1.3, "top_p": 0.9, "max_tokens": 12}
    answer = client.completions.create(model="tiny", prompt=PROMPT, **asked)  # type: ignore[call-overload]
    expected = alone(live, PROMPT, **asked)
    assert [choice.text for choice in answer.choices] == [output.text for output in expected.outputs]
    assert len({choice.text for choice in answer.choices}) > 1


def test_requests_without_a_seed_differ(client: openai.OpenAI) -> None:
    texts = {client.completions.create(model="tiny", prompt=PROMPT).choices[0].text for _ in range(3)}
    assert len(texts) == 3


def test_penalties(client: openai.OpenAI, live: Live) -> None:
    asked = {"temperature": 0, "presence_penalty": 2, "frequency_penalty": 2, "max_tokens": 60}
    answer = client.completions.create(model="tiny", prompt=PROMPT, **asked)  # type: ignore[call-overload]
    assert answer.choices[0].text == alone(live, PROMPT, **asked).text != alone(live, PROMPT, max_tokens=60).text
    more = {"repetition_penalty": 1.7, "min_tokens": 2, "top_k": 3, "stop_token_ids": [7], "ignore_eos": True}
    ours = client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=12, extra_body=more)
    assert ours.choices[0].text == alone(live, PROMPT, **more).text


def test_stop(client: openai.OpenAI, live: Live) -> None:
    whole = alone(live, PROMPT).text
    stop = whole[5]
    answer = client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=12, stop=[stop, "xyz"])
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (whole.partition(stop)[0], "stop")
    assert choice.stop_reason == stop  # type: ignore[attr-defined]


def test_logprobs_of_a_completion(client: openai.OpenAI, live: Live) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=12, logprobs=3)
    found = answer.choices[0].logprobs
    expected = alone(live, PROMPT, logprobs=3)
    assert found is not None and expected.logprobs is not None
    assert found.token_logprobs == pytest.approx(
        [entry[token].logprob for entry, token in zip(expected.logprobs, expected.token_ids, strict=True)], abs=1e-4
    )
    assert found.top_logprobs is not None and found.text_offset is not None and found.tokens is not None
    assert [len(entry) >= 3 for entry in found.top_logprobs] == [True] * 12
    chosen = [entry[token] for entry, token in zip(found.top_logprobs, found.tokens, strict=True)]
    assert chosen == found.token_logprobs
    assert found.text_offset == sorted(found.text_offset)
    assert found.text_offset[-1] <= len(answer.choices[0].text)


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    asked = {"temperature": 0, "max_tokens": 4, "logprobs": True}
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, top_logprobs=20, **asked)  # type: ignore
    assert answer.choices[0].logprobs.content is not None
    for entry in answer.choices[0].logprobs.content:
        assert len(entry.top_logprobs) == 20
        assert entry.logprob == max(one.logprob for one in entry.top_logprobs)
    data = b"".join(bytes(entry.bytes) for entry in answer.choices[0].logprobs.content)
    assert data.decode(errors="replace") == answer.choices[0].message.content
    without = client.chat.completions.create(model="tiny", messages=MESSAGES, **asked)  # type: ignore[call-overload]
    assert [len(entry.top_logprobs) for entry in without.choices[0].logprobs.content] == [0] * 4


def test_routed_experts_of_a_stream(client: openai.OpenAI, live: Live) -> None:
    stream = client.completions.create(
        model="tiny",
        prompt=PROMPT,
        temperature=0,
        max_tokens=12,
        stream=True,
        extra_body={"return_routed_experts": True},
    )
    extras = [chunk.model_dump()["moejax"] for chunk in stream]
    expected = alone(live, PROMPT, return_routed_experts=True)
    assert expected.routed_experts is not None
    assert [token for extra in extras for token in extra["token_ids"]] == expected.token_ids
    # Each token with the experts of the pass that chose it: the first with those of the prompt's last token.
    experts = [entry for extra in extras for entry in extra["routed_experts"]]
    assert experts == expected.routed_experts[len(expected.prompt_token_ids) - 1 :].tolist()
    assert "".join(text for extra in extras for text in extra["texts"]) == expected.text
    times = [extra["time"] for extra in extras]
    assert times == sorted(times) and times[0] > 0


@pytest.mark.parametrize(
    ("asked", "facts", "param"),
    [
        ({"max_tokens": 400}, ("320", "400"), "max_tokens"),
        ({"max_tokens": 0}, ("max_tokens", "1", "got 0"), "max_tokens"),
        ({"temperature": -1}, ("temperature", "0"), "temperature"),
        ({"n": 2, "temperature": 0}, ("n=2",), "n"),
        ({"n": 5}, ("n=5", "4 slots"), "n"),
        ({"logprobs": 21}, ("20 tokens", "got 21"), "logprobs"),
        ({"seed": -1}, ("seed",), "seed"),
        ({"suffix": "x"}, ("suffix", "not supported"), "suffix"),
        ({"logit_bias": {"5": 101}}, ("logit_bias", "100", "101.0"), "logit_bias"),
        ({"logit_bias": {"the": 1}}, ("logit_bias", "'the'"), "logit_bias"),
        ({"logit_bias": {"300": 1}}, ("logit_bias", "300", "299"), None),
        ({"best_of": 2}, ("best_of", "not supported"), "best_of"),
        ({"extra_body": {"guided_json": {}}}, ("'guided_json'",), "guided_json"),
        ({"extra_body": {"temperature": "1"}}, ("temperature", "number"), "temperature"),
        ({"extra_body": {"stop_token_ids": list(range(2, 20))}}, ("16 stop tokens",), "stop_token_ids"),
        ({"stop": [str(number) for number in range(1025)]}, ("1,024 stop strings",), "stop"),
        ({"stop": "x" * 16_385}, ("16,384", "16,385"), "stop"),
        ({"extra_body": {"return_routed_experts": True}}, ("add stream=true",), "return_routed_experts"),
        ({"stream_options": {"include_usage": True}}, ("add stream=true",), "stream_options"),
        ({"prompt": ""}, ("prompt 0 is empty",), "prompt"),
        ({"prompt": [300]}, ("token id 300",), "prompt"),
        ({"prompt": ["a"] * 9}, ("9 prompts", "6"), "prompt"),
        ({"prompt": "a" * 100_000}, ("320", "100000"), "prompt"),
        ({"prompt": "a" * 321}, ("320", "shorten"), "prompt"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_refused(
    client: openai.OpenAI, asked: dict[str, object], facts: tuple[str, ...], param: str | None
) -> None:
    with refuses(openai.BadRequestError, *facts) as caught:
        client.completions.create(**{"model": "tiny", "prompt": PROMPT, **asked})  # type: ignore[call-overload]
    body = caught.value.body
    assert isinstance(body, dict)
    assert (body["type"], body["param"]) == ("invalid_request_error", param)


def test_harmless_fields_are_taken(client: openai.OpenAI) -> None:
    client.completions.create(
        model="tiny", prompt="a", max_tokens=1, user="me", echo=False, best_of=1, suffix=None, logit_bias={}
    )
    client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,  # type: ignore[arg-type]
        max_tokens=1,
        metadata={"a": "b"},
        response_format={"type": "text"},
        tool_choice="none",
        store=False,
        safety_identifier="me",
        prompt_cache_key="a",
    )


def test_chats_are_checked(client: openai.OpenAI) -> None:
    for asked, facts in (
        ({"messages": []}, ("one message",)),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, ("no text",)),
        ({"top_logprobs": 2}, ("top_logprobs", "logprobs=true")),
        ({"max_tokens": 2, "max_completion_tokens": 3}, ("max_tokens", "max_completion_tokens", "give one")),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, ("tools", "not supported")),
        ({"response_format": {"type": "json_object"}}, ("response_format", "not supported")),
    ):
        with refuses(openai.BadRequestError, *facts):
            client.chat.completions.create(**{"model": "tiny", "messages": MESSAGES, **asked})  # type: ignore


def test_wrong_model(client: openai.OpenAI) -> None:
    with refuses(openai.NotFoundError, "'gpt-4'", "'tiny'"):
        client.completions.create(model="gpt-4", prompt="a")
