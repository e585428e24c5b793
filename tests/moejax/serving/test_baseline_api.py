"""The baseline's routes, with a process that does as it is told: what is refused, and that the engine is held."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from moejax.serving.baseline import Choice, Task
from moejax.serving.baseline_process import BaselineFailed, BaselineProcess
from tests.messages import says

if TYPE_CHECKING:  # it imports JAX, before tests/conftest.py has set its options
    from tests.moejax.serving.live import Live

ASKED: dict[str, Any] = {"prompt": "abc", "max_tokens": 3, "temperature": 0, "stream": True}
PLAIN = Choice(kind="plain", reason="of the test", source="nowhere")

Tokens = AsyncGenerator[list[int], None]  # as they come together
Script = Callable[[], Tokens]


class Scripted(BaselineProcess):
    """Yields the tokens of a script."""

    def __init__(self, script: Script) -> None:
        super().__init__(PLAIN)
        self.description = "scripted"
        self.script = script
        self.tasks: list[Task] = []

    async def start(self, *, dtype: str, platform: str) -> None:
        assert (dtype, platform) == ("float32", "cpu")

    async def run(self, task: Task) -> AsyncGenerator[list[tuple[int, float]], None]:
        self.tasks.append(task)
        seconds = 0.0
        async for tokens in self.script():
            yield [(token, seconds := seconds + 0.5) for token in tokens]


def with_client(live: "Live", process: BaselineProcess, story: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Runs `story` against the engine of `live`, in an application of its own that has this baseline."""
    from moejax.serving.app import create_app
    from moejax.serving.settings import AppSettings

    app = create_app(live.engine, AppSettings(model_name="tiny", baseline=PLAIN))
    app.state.baseline = process

    async def run() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=300) as client:
            await story(client)

    asyncio.run(run())


def events(answer: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def three_tokens() -> Tokens:
    yield [70]
    yield [71, 72]


def test_without_a_baseline_there_is_no_route(live: "Live") -> None:
    with live.client() as client:
        answer = client.post("/v1/moejax/baseline/completions", json=ASKED)
        info = client.get("/v1/moejax/info").json()
    assert answer.status_code == 404
    says(answer.json()["error"]["message"], "no baseline")
    assert info["baseline"]["available"] is False


def test_stream_has_the_form_of_a_completion(live: "Live") -> None:
    process = Scripted(three_tokens)

    async def story(client: httpx.AsyncClient) -> None:
        *chunks, done = events(await client.post("/v1/moejax/baseline/completions", json=ASKED))
        assert done == "[DONE]"
        (*_, running), tokens = chunks[:-2], chunks[-2:]
        assert running == {"choices": [], "moejax": {"status": "running", "description": "scripted"}}
        assert [chunk["moejax"]["token_ids"] for chunk in tokens] == [[70], [71, 72]]
        assert [chunk["choices"][0]["finish_reason"] for chunk in tokens] == [None, "length"]
        assert [chunk["moejax"]["time"] for chunk in tokens] == [0.5, 1.5]
        tokenizer = live.model.tokenizer
        assert tokenizer is not None
        assert "".join(chunk["choices"][0]["text"] for chunk in tokens) == tokenizer.decode([70, 71, 72])
        assert process.tasks[0].prompt == tokenizer.encode("abc")

    with_client(live, process, story)


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({"stream": False}, ("stream",)),
        ({"prompt": ["a", "b"]}, ("one prompt", "got 2")),
        ({"n": 2, "temperature": 1}, ("n", "got 2")),
        ({"logprobs": 2}, ("logprobs",)),
        ({"return_routed_experts": True}, ("return_routed_experts",)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_it_does_not_do_is_refused(live: "Live", changed: dict[str, Any], facts: tuple[str, ...]) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/moejax/baseline/completions", json=ASKED | changed)
        assert answer.status_code == 400
        says(answer.json()["error"]["message"], *facts)

    with_client(live, Scripted(three_tokens), story)


def test_what_comes_after_the_end_is_dropped_and_off_the_clock(live: "Live") -> None:
    tokenizer = live.model.tokenizer
    assert tokenizer is not None

    async def all_at_once() -> Tokens:
        yield [70, 71, 72, 73]

    async def story(client: httpx.AsyncClient) -> None:
        body = ASKED | {"max_tokens": 4, "stop": tokenizer.decode([72])}
        *_, last, done = events(await client.post("/v1/moejax/baseline/completions", json=body))
        assert done == "[DONE]"
        assert last["moejax"]["token_ids"] == [70, 71, 72]
        assert last["moejax"]["time"] == 1.5
        assert last["choices"][0]["finish_reason"] == "stop"
        assert last["choices"][0]["text"] == tokenizer.decode([70, 71])

    with_client(live, Scripted(all_at_once), story)


def test_second_race_is_refused_while_one_runs(live: "Live") -> None:
    process = Scripted(three_tokens)

    async def story(client: httpx.AsyncClient) -> None:
        process.reserve()
        answer = await client.post("/v1/moejax/baseline/completions", json=ASKED)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "baseline_busy")
        process.release()
        answer = await client.post("/v1/moejax/baseline/completions", json=ASKED)
        assert answer.status_code == 200

    with_client(live, process, story)


def test_engine_is_held_while_the_baseline_runs(live: "Live") -> None:
    waiting: list[asyncio.Task[httpx.Response]] = []

    async def story(client: httpx.AsyncClient) -> None:
        async def slow() -> Tokens:
            yield [70]
            ours = ASKED | {"stream": False}
            waiting.append(asyncio.create_task(client.post("/v1/completions", json=ours)))
            await asyncio.sleep(0.5)
            assert not waiting[0].done(), "both ran at once"
            yield [71]

        process.script = slow
        done = await client.post("/v1/moejax/baseline/completions", json=ASKED)
        assert events(done)[-1] == "[DONE]"
        assert (await waiting[0]).status_code == 200, "the engine stayed held"

    process = Scripted(three_tokens)
    with_client(live, process, story)


def test_failure_and_time_limit_end_the_stream_and_free_the_engine(
    live: "Live", monkeypatch: pytest.MonkeyPatch
) -> None:
    from moejax.serving import baseline_api

    async def failing() -> Tokens:
        yield [70]
        raise BaselineFailed("the baseline broke")

    async def endless() -> Tokens:
        yield [70]
        await asyncio.sleep(600)

    async def story(client: httpx.AsyncClient) -> None:
        for script, most_seconds, message in (
            (failing, 120.0, "the baseline broke"),
            (endless, 0.1, "the baseline took more than 0 s"),
        ):
            process.script = script
            monkeypatch.setattr(baseline_api, "MOST_SECONDS", most_seconds)
            last = events(await client.post("/v1/moejax/baseline/completions", json=ASKED))[-1]
            assert last["error"]["message"].startswith(message)
            ours = await client.post("/v1/completions", json=ASKED | {"stream": False})
            assert ours.status_code == 200

    process = Scripted(three_tokens)
    with_client(live, process, story)
