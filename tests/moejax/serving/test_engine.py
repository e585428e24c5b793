"""The engine without HTTP: every request gets the tokens of `decode` alone, whatever runs beside it."""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import pytest

import moejax
from moejax import SamplingParams
from moejax.serving.engine import Engine
from moejax.serving.jobs import Delta, EngineError, Mailbox, QueueFull, ServedRequest, wake
from moejax.serving.running import CHUNK_SECONDS
from tests.messages import refuses, says
from tests.moejax.serving.live import WAIT_SECONDS, finished, job, make_engine, scheduler_of, wait_until_ready

# Short, exactly a short group, one more, a chunk, one more, several chunks, nearly the whole cache.
LENGTHS = (1, 7, 8, 9, 31, 32, 33, 64, 65, 150, 290)
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.9, "seed": 5},
    {"temperature": 1.2, "seed": 6, "n": 3, "top_p": 0.9},
    {"presence_penalty": 1.5, "repetition_penalty": 1.3, "min_tokens": 3},
    {"temperature": 0.7, "seed": 7, "logprobs": 4, "top_k": 9, "frequency_penalty": 0.5, "return_routed_experts": True},
    {"stop": ["é", "本"], "return_routed_experts": True},
)
numbers = itertools.count()


@pytest.fixture(scope="module")
def engine(model: "moejax.Model") -> Iterator[Engine]:
    one = make_engine(model, max_batch=4, max_queue=100, prefill_chunk=32)
    one.start()
    wait_until_ready(one)
    yield one
    one.stop()


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 300, length).tolist()


async def run(engine: Engine, jobs: list[ServedRequest]) -> None:
    engine.submit(jobs)
    await asyncio.wait_for(asyncio.gather(*map(finished, jobs)), WAIT_SECONDS)


def check(model: "moejax.Model", *jobs: ServedRequest) -> None:
    """Compares with one call of `decode`, always of the same shapes, since each shape has to be compiled."""
    everything = SamplingParams(max_tokens=30, **KINDS[3], **KINDS[4])
    beside = [prompt(290, 0)] * (1 if sum(len(one.sequences) for one in jobs) > 4 else 5 - len(jobs))
    params = [one.request.params for one in jobs] + [everything] * len(beside)
    alone = moejax.decode(model, [one.request.prompt for one in jobs] + beside, params)
    for one, result in zip(jobs, alone, strict=False):
        for sequence, output in zip(one.sequences, result.outputs, strict=True):
            assert sequence.tokens == output.token_ids
            assert (sequence.finish_reason, sequence.stop_reason) == (output.finish_reason, output.stop_reason)


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """Prompts are fed, which gives the first tokens; steps of the decode loop are taken when the block has ended.

    However busy the machine is, a request that has begun is then not finished before the test has done the next thing.
    """
    slots, go_on = scheduler_of(engine).slots, threading.Event()
    generate = slots.generate

    def later(*args: Any, **rest: Any) -> Any:
        assert go_on.wait(WAIT_SECONDS)
        return generate(*args, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "generate", later)
        try:
            yield
        finally:
            go_on.set()


async def first_token(one: ServedRequest) -> None:
    async for _ in one.mailbox:
        break


def test_tokens_are_those_of_decode_alone(engine: Engine, model: "moejax.Model") -> None:
    async def main() -> list[ServedRequest]:
        kinds = itertools.cycle(KINDS)
        jobs = [
            job(model, prompt(length, seed), next(numbers), max_tokens=min(28, 320 - length), **next(kinds))
            for seed in range(2)
            for length in LENGTHS
        ]
        await run(engine, jobs)
        return jobs

    check(model, *asyncio.run(main()))


def test_one_request_alone_is_decode_alone(engine: Engine, model: "moejax.Model") -> None:
    async def main() -> ServedRequest:
        beside = [job(model, prompt(50, seed), next(numbers), max_tokens=40, temperature=1.0) for seed in range(9)]
        one = job(model, prompt(20, 7), next(numbers), max_tokens=40)
        await run(engine, [*beside, one])
        return one

    one = asyncio.run(main())
    assert one.sequences[0].tokens == moejax.decode(model, [one.request.prompt], max_tokens=40)[0].token_ids


def test_nothing_is_compiled_once_it_is_ready(engine: Engine, model: "moejax.Model") -> None:
    """Reads the counter of the engine's own programs: decode(), which compiles its own, runs before and after."""
    before, heard = model.programs.compiled, []
    jax.monitoring.register_event_duration_secs_listener(
        listen := lambda event, duration_secs, **_: heard.append(event) if "compile" in event else None
    )

    async def main() -> None:
        for kind in KINDS:
            await run(engine, [job(model, prompt(n, n), next(numbers), max_tokens=20, **kind) for n in LENGTHS])

    try:
        asyncio.run(main())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert model.programs.compiled == before
    assert heard == []


def test_a_reused_slot_keeps_nothing_of_the_request_before(engine: Engine, model: "moejax.Model") -> None:
    """A row that is fed in parts must survive the steps of its neighbours: an idle row's write lands in its cache."""

    async def main() -> list[ServedRequest]:
        long = [job(model, prompt(40, seed), next(numbers), max_tokens=60) for seed in range(4)]
        with held(engine):
            engine.submit(long)
            await first_token(long[0])
            engine.cancel(long[:3])
        jobs = [job(model, prompt(200, 9 + seed), next(numbers), max_tokens=20) for seed in range(3)]
        await run(engine, jobs)
        return [*jobs, await finished(long[3])]

    check(model, *asyncio.run(main()))


def test_prompts_are_fed_between_steps(engine: Engine, model: "moejax.Model", monkeypatch: pytest.MonkeyPatch) -> None:
    """While a row generates, only one part of a long prompt is fed before its next tokens, if parts take long."""
    scheduler = scheduler_of(engine)
    calls: list[str] = []
    feed, generate = scheduler.slots.feed, scheduler.slots.generate
    submitted = threading.Event()

    def slow_feed(*args: Any) -> Any:
        calls.append("feed")
        time.sleep(0.06)
        return feed(*args)

    def one_step(wanted: int, **rest: int) -> Any:
        assert submitted.wait(WAIT_SECONDS)
        calls.append("generate")
        return generate(1, **rest)

    monkeypatch.setattr(scheduler.slots, "feed", slow_feed)
    monkeypatch.setattr(scheduler.slots, "generate", one_step)

    async def main() -> list[ServedRequest]:
        first = job(model, prompt(5, 1), next(numbers), max_tokens=60)
        engine.submit([first])
        await first_token(first)
        calls.clear()
        long = job(model, prompt(290, 2), next(numbers), max_tokens=2)
        engine.submit([long])
        submitted.set()
        await asyncio.wait_for(finished(long), WAIT_SECONDS)
        return [long, await finished(first)]

    check(model, *asyncio.run(main()))
    assert calls.count("feed") == 10
    assert not any(pair == ("feed", "feed") for pair in itertools.pairwise(calls))


@pytest.mark.parametrize("stop", [[], ["no such text"]], ids=["no stop strings", "a stop string"])
def test_the_next_call_is_made_before_the_last_one_is_handed_out(
    engine: Engine, model: "moejax.Model", monkeypatch: pytest.MonkeyPatch, stop: list[str]
) -> None:
    """Unless that could have ended a row. The first call is short: others may be about to come."""
    scheduler = scheduler_of(engine)
    one: ServedRequest | None = None
    calls: list[tuple[int, int, int]] = []
    generate = scheduler.slots.generate

    def noted(wanted: int, *, ahead: int, least: int) -> Any:
        assert one is not None
        calls.append((wanted, ahead, one.generated))
        return generate(wanted, ahead=ahead, least=least)

    monkeypatch.setattr(scheduler.slots, "generate", noted)
    assert engine._running is not None
    greedy = scheduler.slots.feature_sets[0]
    monkeypatch.setitem(engine._running._step_seconds, (greedy, 1), CHUNK_SECONDS / 8)

    async def main() -> None:
        nonlocal one
        one = job(model, prompt(5, 3), next(numbers), max_tokens=300, ignore_eos=True, stop=stop)
        await run(engine, [one])

    asyncio.run(main())
    assert one is not None
    assert calls[0] == (2, 0, 1)
    assert calls[1][1:] == ((0, 3) if stop else (2, 1))
    assert [ahead > 0 for _, ahead, _ in calls[1:]] == [not stop] * (len(calls) - 1)
    assert sum(wanted for wanted, _, _ in calls) == 299, "a call was made for tokens that a row has already"
    check(model, one)


def test_who_wants_a_whole_answer_is_woken_once() -> None:
    delta = Delta(
        output=0,
        texts=["a"],
        token_ids=[1],
        logprobs=None,
        experts=None,
        seconds=0.0,
        finish_reason=None,
        stop_reason=None,
    )

    async def letters(*, whole: bool) -> list[int]:
        mailbox, seen = Mailbox(whole=whole), []

        async def read() -> None:
            async for deltas in mailbox:
                seen.append(len(deltas))

        reading = asyncio.create_task(read())
        for last in (False, False, True):
            mailbox.put(delta)
            if last:
                mailbox.end()
            wake([mailbox])
            for _ in range(5):  # for the reader, and for what wakes it
                await asyncio.sleep(0)
        await asyncio.wait_for(reading, WAIT_SECONDS)
        return seen

    assert asyncio.run(letters(whole=True)) == [3]
    assert asyncio.run(letters(whole=False)) == [1, 1, 1]


def test_a_cancelled_request_leaves_its_slots_to_others(engine: Engine, model: "moejax.Model") -> None:
    async def main() -> None:
        hogs = [job(model, prompt(9, seed), next(numbers), max_tokens=300) for seed in range(4)]
        waiting = job(model, prompt(9, 5), next(numbers), max_tokens=5)
        with held(engine):
            engine.submit([*hogs, waiting])
            await first_token(hogs[0])
            engine.cancel([hogs[0]])
        await asyncio.wait_for(finished(waiting), WAIT_SECONDS)
        engine.cancel(hogs)
        for hog in hogs:
            await asyncio.wait_for(finished(hog), WAIT_SECONDS)
        assert len(hogs[0].sequences[0].tokens) < 300

    asyncio.run(main())


def test_queue_has_a_bound_and_takes_all_jobs_or_none(model: "moejax.Model", engine: Engine) -> None:
    async def main() -> None:
        with engine.paused():
            jobs = [job(model, [1, 2], next(numbers), max_tokens=1) for _ in range(101)]
            with refuses(QueueFull, "0 requests", "100"):
                engine.submit(jobs)
            with refuses(QueueFull, "0 requests", "75"):
                engine.submit(jobs[:76])
            engine.submit(jobs[:75])
            with refuses(QueueFull, "75 requests", "75"):
                engine.submit(jobs[75:76])
            engine.submit(jobs[75:100], "another")
            with refuses(QueueFull, "100 requests", "100"):
                engine.submit(jobs[100:], "another")
        await asyncio.wait_for(asyncio.gather(*map(finished, jobs[:100])), WAIT_SECONDS)

    asyncio.run(main())


def test_paused_engine_makes_no_call(model: "moejax.Model", engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause comes while a call of the decode loop runs, which is one step long and the last one."""
    slots, allowed = scheduler_of(engine).slots, threading.Semaphore(0)
    generate = slots.generate

    def one_step(wanted: int, **rest: int) -> Any:
        assert allowed.acquire(timeout=WAIT_SECONDS)
        return generate(1, **rest)

    monkeypatch.setattr(slots, "generate", one_step)

    async def main() -> None:
        one = job(model, [1, 2], next(numbers), max_tokens=300)
        engine.submit([one])
        await first_token(one)
        pause = engine.paused()
        entering = asyncio.create_task(asyncio.to_thread(pause.__enter__))
        while not engine._pauses:
            await asyncio.sleep(0.01)
        allowed.release(1000)
        await asyncio.wait_for(entering, WAIT_SECONDS)
        before = len(one.sequences[0].tokens)
        await asyncio.sleep(0.2)  # in which it could make many calls
        assert len(one.sequences[0].tokens) == before <= 3
        pause.__exit__(None, None, None)
        await asyncio.wait_for(finished(one), WAIT_SECONDS)
        check(model, one)

    asyncio.run(main())


@pytest.mark.parametrize("where", ["feed", "generate"])
def test_death_of_the_thread_is_told_to_everybody(
    model: "moejax.Model", monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    dying = make_engine(model, max_batch=4, max_queue=100, prefill_chunk=32)
    dying.start()
    wait_until_ready(dying)
    scheduler = scheduler_of(dying)

    def fail(*_: Any, **__: Any) -> Any:
        raise SystemExit("killed")  # as little an Exception as a thread can end by

    async def main() -> None:
        jobs = [job(model, [1, 2], next(numbers), max_tokens=50) for _ in range(9)]
        monkeypatch.setattr(scheduler.slots, where, fail)
        dying.submit(jobs)
        ends = await asyncio.wait_for(asyncio.gather(*map(finished, jobs), return_exceptions=True), WAIT_SECONDS)
        assert [type(end) for end in ends] == [EngineError] * 9
        for end in ends:
            says(str(end), "SystemExit")
        with refuses(EngineError, "start the server"):
            dying.submit([job(model, [1], next(numbers), max_tokens=1)])

    asyncio.run(main())
    assert dying.status == "dead"
    with refuses(EngineError, "failed"):
        _ = dying.model


def test_drained_engine_finishes_what_runs_and_gives_up_what_waits(model: "moejax.Model") -> None:
    ending = make_engine(model, max_batch=4, max_queue=100, prefill_chunk=32)
    ending.start()
    wait_until_ready(ending)

    async def main() -> None:
        jobs = [job(model, [1, seed], next(numbers), max_tokens=300) for seed in range(6)]
        with held(ending):
            ending.submit(jobs)
            for one in jobs[:4]:
                await first_token(one)
            ending.drain(WAIT_SECONDS)
        ends = await asyncio.wait_for(asyncio.gather(*map(finished, jobs), return_exceptions=True), WAIT_SECONDS)
        assert ends[:4] == jobs[:4]
        for end in ends[4:]:
            says(str(end), "shutting down")
        check(model, *jobs[:4])

    asyncio.run(main())
    ending.stop()
    assert ending.status == "stopped"


def test_drained_engine_gives_up_what_runs_too_long(model: "moejax.Model", engine: Engine) -> None:
    ending = make_engine(model, max_batch=4, max_queue=100, prefill_chunk=32)
    ending.start()
    wait_until_ready(ending)

    async def main() -> None:
        one = job(model, [1, 2], next(numbers), max_tokens=300)
        with held(ending):
            ending.submit([one])
            await first_token(one)
            ending.drain(0)
        with pytest.raises(EngineError, match="shutting down"):
            await asyncio.wait_for(finished(one), WAIT_SECONDS)
        assert not one.finished

    asyncio.run(main())
    ending.stop()
