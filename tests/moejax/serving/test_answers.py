"""Answers hold what JSON can say, and nothing of one choice in another."""

import json
import math
from typing import Any

import pytest

from moejax.decoding.requests import Request
from moejax.decoding.results import Logprob, TokenLogprobs
from moejax.decoding.sampling_params import SamplingParams
from moejax.decoding.sequences import Sequence
from moejax.serving.errors import ApiError, json_bytes
from moejax.serving.jobs import Delta
from moejax.serving.openai_answers import LOWEST_LOGPROB, Answer
from tests.tokenizer_models import byte_level, loaded

TOKENIZER = loaded(byte_level())


class StandIn:
    """What an answer reads of a job."""

    echo = None

    def __init__(self, **params: Any) -> None:
        self.request = Request(index=0, prompt=[1, 2], params=SamplingParams(**params), stop_ids=())
        self.sequences = [
            Sequence(request=self.request, output=output, tokenizer=TOKENIZER, eos_token_ids=())
            for output in range(self.request.params.n)
        ]
        self.generated = 2


def id_of(text: str) -> int:
    """The token that is this text."""
    (token,) = (i for i in TOKENIZER.encode(text) if i != TOKENIZER.bos_id)
    return token


def delta(output: int, texts: list[str], logprobs: list[TokenLogprobs] | None = None, end: str | None = None) -> Delta:
    return Delta(
        output=output,
        texts=texts,
        token_ids=[next(iter(entry)) for entry in logprobs] if logprobs else [5] * len(texts),
        logprobs=logprobs,
        experts=None,
        seconds=0.5,
        finish_reason=end,
        stop_reason=None,
    )


def answer(chat: bool, *jobs: StandIn) -> Answer:
    return Answer(chat=chat, model_name="tiny", jobs=jobs, dtype="float32")  # type: ignore[arg-type]


@pytest.mark.parametrize("logprob", [-math.inf, -1e9])
@pytest.mark.parametrize("chat", [True, False])
def test_logprobs_that_json_cannot_say(logprob: float, chat: bool) -> None:
    entry = {
        id_of("é"): Logprob(logprob=logprob, rank=3, decoded_token="é"),
        id_of("a"): Logprob(logprob=0.0, rank=1, decoded_token="a"),
    }
    whole = answer(chat, StandIn(logprobs=1)).whole([[delta(0, ["é"], [entry], "length")]])
    found = json.loads(json_bytes(whole))["choices"][0]["logprobs"]
    if chat:
        assert found["content"][0]["logprob"] == LOWEST_LOGPROB
        assert found["content"][0]["bytes"] == [0xC3, 0xA9]
        assert [one["token"] for one in found["content"][0]["top_logprobs"]] == ["a"]
    else:
        assert found["token_logprobs"] == [LOWEST_LOGPROB]
        assert found["top_logprobs"] == [{"a": 0.0, "é": LOWEST_LOGPROB}]


def test_offsets_go_on_from_chunk_to_chunk_of_each_choice() -> None:
    def entry(text: str) -> list[TokenLogprobs]:
        return [{id_of(text): Logprob(logprob=-1.0, rank=1, decoded_token=text)}]

    one = answer(False, StandIn(logprobs=0, n=2, temperature=1.0), StandIn(logprobs=0, n=2, temperature=1.0))
    given = [(0, 0, "é"), (1, 0, " a"), (0, 1, " a"), (0, 0, "f"), (1, 0, "y"), (0, 1, "g")]
    chunks = [one.chunk(at, delta(out, [text], entry(text)), include_usage=False) for at, out, text in given]
    choices = [chunk["choices"][0] for chunk in chunks if chunk is not None]
    assert [choice["index"] for choice in choices] == [0, 2, 1, 0, 2, 1]
    assert [choice["logprobs"]["text_offset"] for choice in choices] == [[0], [0], [0], [1], [2], [2]]


def test_chunk_that_has_nothing_to_say_is_left_out() -> None:
    one = answer(True, StandIn())
    assert one.chunk(0, delta(0, ["", ""]), include_usage=False) is None
    first = one.chunk(0, delta(0, ["", "a"]), include_usage=True)
    last = one.chunk(0, delta(0, [""], end="stop"), include_usage=True)
    assert first is not None and last is not None
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "a"}
    assert last["choices"][0]["delta"] == {"content": ""}
    assert first["usage"] is None


def test_errors_survive_what_is_no_unicode() -> None:
    body = ApiError(400, "unknown field '\ud800'", param="\ud800").response().body
    assert json.loads(bytes(body))["error"]["message"] == "unknown field '?'"
