"""Log-probabilities over HTTP, whole and streamed: of prompts, of parts of characters, of what a stop takes back."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

import moejax
from tests.moejax.serving.live import WAIT_SECONDS, Live

PROMPT = "the import statement"
MESSAGES: Any = [{"role": "user", "content": "a list is"}]
EURO = (0xE2, 0x82, 0xAC)


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=WAIT_SECONDS) as one:
        yield one


def ask(live: Live, path: str, **asked: Any) -> dict[str, Any]:
    answer = httpx.post(f"{live.url}/v1/{path}", json={"temperature": 0, **asked}, timeout=WAIT_SECONDS)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("stop", [None, "middle", "end"])
def test_bytes_of_a_chat_are_its_content(client: openai.OpenAI, live: Live, stop: str | None) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 24, "temperature": 1, "seed": 5}
    asked |= {"logprobs": True, "top_logprobs": 20}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    assert whole
    if stop is not None:
        at = len(whole) // 2 if stop == "middle" else len(whole) - 2
        asked["stop"] = whole[at : at + 2]
    choice = client.chat.completions.create(**asked).choices[0]
    entries = choice.logprobs.content
    assert entries is not None
    assert choice.message.content == (whole.partition(asked["stop"])[0] if stop else whole)
    assert b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace") == choice.message.content
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    streamed = [entry for chunk in chunks if chunk.logprobs for entry in chunk.logprobs.content or ()]
    assert [entry.bytes for entry in streamed] == [entry.bytes for entry in entries]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]


def test_a_character_of_three_tokens(live: Live) -> None:
    """Each is enforced by a bias: together they are the euro sign, alone no text."""
    tokenizer = live.model.tokenizer
    assert tokenizer is not None
    ids = [next(i for i in range(300) if tokenizer.token_bytes(i) == bytes([byte])) for byte in EURO]
    found, prompt = [], tokenizer.encode(PROMPT)
    for token in ids:
        answer = ask(live, "completions", prompt=prompt, max_tokens=1, logprobs=1, logit_bias={str(token): 100})
        found += answer["choices"][0]["logprobs"]["tokens"]
        prompt = [*prompt, token]
    assert found == [f"bytes:\\x{byte:02x}" for byte in EURO]
    echoed = ask(live, "completions", prompt=ids, echo=True, max_tokens=0, logprobs=2)["choices"][0]
    assert echoed["text"] == "€"
    assert echoed["logprobs"]["tokens"] == found
    assert echoed["logprobs"]["text_offset"] == [0, 0, 0]


def test_twenty_candidates_are_twenty_entries(live: Live) -> None:
    answer = ask(live, "completions", prompt=PROMPT, max_tokens=12, logprobs=20)
    found = answer["choices"][0]["logprobs"]
    for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert len(top) == 20
        assert top[token] == logprob


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("length", [7, 90])  # in one part, and in several
def test_echo_is_the_prompt_with_its_logprobs(live: Live, length: int, stream: bool) -> None:
    prompt = [5 + at % 90 for at in range(length)]
    asked: dict[str, Any] = {"prompt": prompt, "max_tokens": 3, "logprobs": 2, "echo": True}
    (expected,) = moejax.decode(live.model, prompt, max_tokens=3, logprobs=2, prompt_logprobs=2)
    assert expected.prompt_logprobs is not None and expected.logprobs is not None
    if stream:
        parts = streamed(live, asked)
        text = "".join(part["text"] for part in parts)
        found = {key: [one for part in parts for one in part["logprobs"][key]] for key in parts[0]["logprobs"]}
    else:
        (choice,) = ask(live, "completions", **asked)["choices"]
        text, found = choice["text"], choice["logprobs"]
    tokenizer = live.model.tokenizer
    assert tokenizer is not None
    assert text == tokenizer.decode(prompt) + expected.text
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    entries = [*expected.prompt_logprobs[1:], *expected.logprobs]
    ids = [*prompt[1:], *expected.token_ids]
    wanted = [entry[token].logprob for entry, token in zip(entries, ids, strict=True) if entry is not None]
    assert found["token_logprobs"][1:] == pytest.approx(wanted, abs=1e-4)
    assert {len(value) for value in found.values()} == {length + 3}


def streamed(live: Live, asked: dict[str, Any]) -> list[dict[str, Any]]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", timeout=WAIT_SECONDS) as one:
        chunks = one.completions.create(model="tiny", temperature=0, stream=True, **asked)
        return [chunk.model_dump()["choices"][0] for chunk in chunks]


def test_echo_alone_generates_nothing(live: Live) -> None:
    answer = ask(live, "completions", prompt=[PROMPT, "é"], echo=True, max_tokens=0)
    assert [choice["text"] for choice in answer["choices"]] == [PROMPT, "é"]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"]["completion_tokens"] == 0


def test_echo_of_several_outputs(live: Live) -> None:
    answer = ask(live, "completions", prompt="é", echo=True, max_tokens=4, n=2, temperature=1, seed=1, logprobs=0)
    plain = ask(live, "completions", prompt="é", max_tokens=4, n=2, temperature=1, seed=1)
    assert [choice["text"] for choice in answer["choices"]] == ["é" + choice["text"] for choice in plain["choices"]]
    lengths = {len(choice["logprobs"]["tokens"]) for choice in answer["choices"]}
    assert lengths == {4 + plain["usage"]["prompt_tokens"]}
