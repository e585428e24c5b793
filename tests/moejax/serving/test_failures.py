"""One request that cannot be answered gets 500; those beside it, and later ones, are answered."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moejax
from moejax.decoding.sequences import Sequence
from tests.messages import says
from tests.moejax.decoding.test_not_finite import BEFORE, ILL, SOUND, folder  # noqa: F401
from tests.moejax.serving.conftest import SIZES
from tests.moejax.serving.live import Live, running, settled
from tests.moejax.serving.test_faults import error_of

COMPLETIONS = "/v1/completions"
ASKED = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}


@pytest.fixture(scope="module")
def overflowing(folder: Path) -> Iterator[Live]:  # noqa: F811
    model = moejax.load(folder, dtype="float16", max_seq_len=64)
    with running(model, **SIZES) as live:
        yield live


@pytest.mark.parametrize("prompts", [[ILL], [SOUND, ILL]], ids=["alone", "one of two"])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_logits_that_are_not_finite(overflowing: Live, prompts: list[list[int]], logprobs: int | None) -> None:
    live, sound = overflowing, []

    def beside() -> None:
        with live.client() as client:
            sound.append(client.post(COMPLETIONS, json={**ASKED, "prompt": SOUND}).json()["choices"][0]["text"])

    thread = threading.Thread(target=beside)
    thread.start()
    with live.client() as client:
        answer = client.post(COMPLETIONS, json={**ASKED, "prompt": prompts, "logprobs": logprobs})
        assert answer.status_code == 500
        error = error_of(answer)
        assert (error["type"], error["code"]) == ("server_error", "request_failed")
        says(error["message"], f"prompt {len(prompts) - 1}", BEFORE, "float16", "bfloat16")
        assert client.get("/health").status_code == 200
        thread.join()
        after = client.post(COMPLETIONS, json={**ASKED, "prompt": SOUND}).json()["choices"][0]["text"]
    (expected,) = moejax.decode(live.model, [SOUND], max_tokens=8, ignore_eos=True)
    assert [after, *sound] == [expected.text] * 2
    settled(live)


def test_a_stream_ends_with_the_error(overflowing: Live) -> None:
    live, tokens = overflowing, list[int]()
    asked = {**ASKED, "prompt": ILL, "stream": True, "return_progress": True}
    with live.client() as client:
        lines = [line for line in client.post(COMPLETIONS, json=asked).text.splitlines() if line]
    *chunks, last = [json.loads(line.removeprefix("data: ")) for line in lines]
    for chunk in chunks:
        tokens += chunk["moejax"]["token_ids"]
    assert tokens == moejax.decode(live.model, [ILL], max_tokens=BEFORE)[0].token_ids
    says(last["error"]["message"], BEFORE, "float16")


def test_log_probabilities_of_a_prompt_that_are_none(overflowing: Live) -> None:
    live = overflowing
    bad = [*ILL, *moejax.decode(live.model, [ILL], max_tokens=BEFORE)[0].token_ids, 5]
    with live.client() as client:
        for prompt, status in ((bad, 500), ([*ILL, 5], 200)):
            asked = {**ASKED, "prompt": prompt, "echo": True, "max_tokens": 0, "logprobs": 1}
            answer = client.post(COMPLETIONS, json=asked)
            assert answer.status_code == status
            if status == 500:
                says(error_of(answer)["message"], "prompt 0", "float16")


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of 3 tokens' prompts raise at their second token."""
    push = Sequence.push

    def broken(self: Sequence, *made: Any) -> Any:
        if len(self.request.prompt) == 3 and self.tokens:
            raise KeyError("a piece without text")
        return push(self, *made)

    monkeypatch.setattr(Sequence, "push", broken)


def test_whatever_one_text_raises_ends_it_alone(live: Live, breaks: None) -> None:
    before = live.metric("vllm:request_success_total", finished_reason="abort")
    with live.client() as client:
        for stream in (False, True):
            asked = {**ASKED, "prompt": [5, 6, 7], "stream": stream, "n": 2, "temperature": 1}
            answer = client.post(COMPLETIONS, json=asked)
            lines = [line for line in answer.text.splitlines() if line]
            error = json.loads(lines[-1].removeprefix("data: "))["error"] if stream else error_of(answer)
            says(error["message"], "KeyError", "a piece without text")
        assert client.post(COMPLETIONS, json={**ASKED, "prompt": [5, 6]}).status_code == 200
        assert client.get("/health").status_code == 200
    settled(live)
    assert live.metric("vllm:request_success_total", finished_reason="abort") == before + 2


def test_decode_raises_it(model: "moejax.Model", breaks: None) -> None:
    assert len(moejax.decode(model, [5, 6], max_tokens=4)[0].token_ids) == 4
    with pytest.raises(KeyError, match="a piece without text"):
        moejax.decode(model, [[5, 6, 7], [5, 6]], max_tokens=4)
