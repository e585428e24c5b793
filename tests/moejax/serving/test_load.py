"""Many clients at once on the bundled checkpoint, some of which go away: answers are right, nothing leaks."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import moejax
from tests.moejax.serving.live import WAIT_SECONDS, Live, running, settled

CLIENTS, REQUESTS = 64, 500
MAX_BATCH, MAX_QUEUE = 16, 40
KINDS = 24  # different requests; each is decoded once to compare with
MEMORY_GROWTH = 60e6  # bytes that the second half of the requests may add: allocators do not give all of it back


@dataclass
class Seen:
    """What the clients saw."""

    answers: list[tuple[int, str]] = field(default_factory=list)
    cancelled: int = 0
    refused: int = 0
    waiting: list[float] = field(default_factory=list)


def requests() -> list[dict[str, Any]]:
    """Ragged prompts and lengths, greedy and sampled."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(KINDS):
        prompt = rng.integers(2, 2048, int(rng.integers(1, 150))).tolist()
        sampled = {"temperature": 0.8, "seed": number} if number % 3 == 0 else {"temperature": 0}
        made.append({"prompt": prompt, "max_tokens": int(rng.integers(1, 24)), "ignore_eos": True, **sampled})
    return made


async def one_client(live: Live, number: int, kinds: list[dict[str, Any]], todo: list[int], seen: Seen) -> None:
    rng = np.random.default_rng(number)
    async with httpx.AsyncClient(base_url=live.url, timeout=WAIT_SECONDS) as client:
        while todo:
            kind = todo.pop()
            if rng.random() < 0.2:
                await leave(client, kinds[kind], events=int(rng.integers(0, 3)))
                seen.cancelled += 1
                continue
            seen.waiting.append(live.metric("vllm:num_requests_waiting"))
            while (answer := await client.post("/v1/completions", json=kinds[kind])).status_code == 429:
                seen.refused += 1
                await asyncio.sleep(0.1)
            assert answer.status_code == 200, answer.text
            seen.answers.append((kind, answer.json()["choices"][0]["text"]))


async def leave(client: httpx.AsyncClient, kind: dict[str, Any], *, events: int) -> None:
    """Asks for a stream and goes away after some of its events; after none: when the request has been sent."""
    if events == 0:
        asking = asyncio.create_task(client.post("/v1/completions", json=kind))
        await asyncio.sleep(0.02)  # where it has been answered by then, there is nothing left to leave
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return
    async with client.stream("POST", "/v1/completions", json={**kind, "stream": True}) as answer:
        async for line in answer.aiter_lines():
            events -= line.startswith("data: ")
            if events == 0:
                return


async def load(live: Live, kinds: list[dict[str, Any]], count: int) -> Seen:
    seen, todo = Seen(), [number % KINDS for number in range(count)]
    await asyncio.gather(*(one_client(live, number, kinds, todo, seen) for number in range(CLIENTS)))
    return seen


def memory() -> int:
    """Bytes of this process that no file backs."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def test_answers_under_load_are_those_of_decode() -> None:
    model = moejax.load("demo", dtype="float32", max_seq_len=192)
    kinds = requests()
    alone = moejax.decode(
        model,
        [kind["prompt"] for kind in kinds],
        [moejax.SamplingParams(**{name: value for name, value in kind.items() if name != "prompt"}) for kind in kinds],
    )
    with running(model, max_batch=MAX_BATCH, max_queue=MAX_QUEUE, prefill_chunk=128) as live:
        compiled = model.programs.compiled
        first = asyncio.run(load(live, kinds, REQUESTS // 2))
        settled(live)
        before = memory()
        second = asyncio.run(load(live, kinds, REQUESTS // 2))
        settled(live)
        grown = memory() - before
        assert model.programs.compiled == compiled
        success = sum(live.metric("vllm:request_success_total", finished_reason=r) for r in ("length", "stop"))
    for seen in (first, second):
        assert [(kind, text) for kind, text in seen.answers if text != alone[kind].text] == []
        assert max(seen.waiting) <= MAX_QUEUE
    assert sum(seen.cancelled for seen in (first, second)) > 20
    assert max(max(seen.waiting) for seen in (first, second)) > 10, "there was no load"
    assert success >= len(first.answers) + len(second.answers) >= 300
    assert grown < MEMORY_GROWTH
