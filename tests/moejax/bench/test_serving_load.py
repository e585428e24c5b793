"""The load generator, against a server whose times are known."""

import dataclasses
import math
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moejax.bench import serving_load, serving_request
from moejax.bench.serving_load import FIRST_ID, Load, plan, run
from moejax.bench.serving_report import counts_line, error_lines, summarize
from moejax.bench.serving_request import Outcome
from tests.messages import says
from tests.moejax.bench.stub_server import DONE, Say, event, serving, steady, token, usage

WAIT_SECONDS = 60  # for the other side, which is expected at once


def load(**given: Any) -> Load:
    defaults: dict[str, Any] = {
        "base_url": "http://127.0.0.1:1",
        "model": "stub",
        "api_key": None,
        "num_prompts": 4,
        "input_len": 8,
        "output_len": 4,
        "range_ratio": 0.0,
        "request_rate": math.inf,
        "max_concurrency": None,
        "vocab_size": 100,
        "temperature": 0.0,
        "ignore_eos": True,
        "seed": 0,
        "timeout": 60.0,
    }
    return Load(**defaults | given)


def test_lengths_ids_and_times_are_drawn_as_asked_and_repeat_with_the_seed() -> None:
    asked = load(num_prompts=2000, input_len=100, output_len=10, range_ratio=0.5, request_rate=50.0, vocab_size=64)
    planned = plan(asked)
    inputs, outputs = [len(p.body["prompt"]) for p in planned], [p.body["max_tokens"] for p in planned]
    assert (min(inputs), max(inputs)) == (50, 150)
    assert (min(outputs), max(outputs)) == (5, 15)
    assert abs(np.mean(inputs) - 100) < 3
    ids = {token for p in planned for token in p.body["prompt"]}
    assert ids == set(range(FIRST_ID, 64))
    gaps = np.diff([p.at for p in planned])
    assert planned[0].at == 0
    assert abs(gaps.mean() - 1 / 50) < 0.002
    assert abs(gaps.std() - 1 / 50) < 0.003  # of exponential gaps the deviation is the mean
    assert plan(asked) == planned
    assert plan(dataclasses.replace(asked, seed=1)) != planned


class Clock:
    """A clock for the client that only the server moves on, each time after the client has looked at it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._looks = threading.Semaphore(0)

    def perf_counter(self) -> float:
        seen = self.now
        self._looks.release()
        return seen

    def move_on(self, seconds: float) -> None:
        assert self._looks.acquire(timeout=WAIT_SECONDS), "the client does not look at the clock"
        self.now += seconds


def test_latencies_are_those_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(serving_request, "time", clock)

    def answer(body: dict[str, Any], say: Say) -> None:
        for place in range(body["max_tokens"]):
            clock.move_on(0.125 * place if place else 0.5)
            say(token())
        clock.move_on(0.0)  # when the last token was read, the next request looks again
        say(usage(body))
        say(DONE)

    with serving(answer) as stub:
        asked = load(base_url=stub.base_url, num_prompts=3, output_len=5, max_concurrency=1)
        outcomes, _ = run(asked, plan(asked))
    assert [one.error for one in outcomes] == [None] * 3
    for one in outcomes:
        assert (one.input_tokens, one.output_tokens) == (8, 5)
        assert (one.ttft, one.itls, one.latency) == (0.5, [0.125, 0.25, 0.375, 0.5], 1.75)
        assert one.tpot == 1.25 / 4
    assert all(body["stream_options"] == {"include_usage": True} and body["ignore_eos"] for body in stub.bodies)


def test_times_are_seconds_of_the_real_clock() -> None:
    with serving(steady(0.1, 0.05)) as stub:
        asked = load(base_url=stub.base_url, num_prompts=2, output_len=3)
        outcomes, duration = run(asked, plan(asked))
    for one in outcomes:
        assert 0.1 <= one.ttft < one.latency <= duration
        assert 0.2 <= one.latency


def test_concurrency_is_bounded_and_reached() -> None:
    """Nobody is answered before three are there, and there are never more."""
    together = threading.Barrier(3)

    def answer(body: dict[str, Any], say: Say) -> None:
        together.wait(WAIT_SECONDS)
        steady(0.0, 0.0)(body, say)

    with serving(answer) as stub:
        asked = load(base_url=stub.base_url, num_prompts=9, output_len=1, max_concurrency=3)
        outcomes, duration = run(asked, plan(asked))
    assert [one.error for one in outcomes] == [None] * 9
    assert stub.most == 3
    assert summarize(asked, outcomes, duration)["max_concurrent_requests"] == 3


def test_requests_are_sent_when_they_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only sleeping moves on."""
    planned = plan(load(num_prompts=6, request_rate=20.0))
    clock = SimpleNamespace(now=7.0)
    clock.perf_counter = lambda: clock.now
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(serving_load, "time", clock)
    sent = [(clock.now - 7.0, request) for request in serving_load._when_due(planned, clock.now)]
    assert [at for at, _ in sent] == pytest.approx([request.at for request in planned])
    assert [request for _, request in sent] == planned


def test_no_request_is_sent_before_it_is_due() -> None:
    with serving(steady(0.0, 0.0)) as stub:
        asked = load(base_url=stub.base_url, num_prompts=6, output_len=1, request_rate=20.0)
        planned, began = plan(asked), time.perf_counter()
        run(asked, planned)
    assert planned[-1].at > 0.1
    assert all(arrived - began >= request.at for arrived, request in zip(sorted(stub.arrivals), planned, strict=True))


def test_key_is_sent() -> None:
    with serving(steady(0.0, 0.0)) as stub:
        asked = load(base_url=stub.base_url, num_prompts=1, api_key="secret")
        run(asked, plan(asked))
    assert stub.headers[0]["Authorization"] == "Bearer secret"


def broken_json(body: dict[str, Any], say: Say) -> None:
    say("data: {")


def cut(body: dict[str, Any], say: Say) -> None:
    say(token())


def failing(body: dict[str, Any], say: Say) -> None:
    say(token())
    say(event(error={"message": "the engine died"}))


def uncounted(body: dict[str, Any], say: Say) -> None:
    say(token())
    say(DONE)


def silent(body: dict[str, Any], say: Say) -> None:
    say(usage(body))
    say(DONE)


@pytest.mark.parametrize(
    ("answer", "facts"),
    [
        (broken_json, ("JSON",)),
        (cut, ("[DONE]",)),
        (failing, ("the engine died",)),
        (uncounted, ("count", "tokens")),
        (silent, ("no token",)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_broken_streams_are_errors(answer: Any, facts: tuple[str, ...]) -> None:
    with serving(answer) as stub:
        asked = load(base_url=stub.base_url, num_prompts=2)
        outcomes, duration = run(asked, plan(asked))
    assert len(outcomes) == 2
    for one in outcomes:
        says(str(one.error), *facts)
    summary = summarize(asked, outcomes, duration)
    assert (summary["completed"], summary["failed"], summary["output_throughput"]) == (0, 2, 0.0)
    assert summary["mean_ttft_ms"] is None
    assert error_lines(outcomes)[0].startswith("2 x ")
    assert "2 failed" in counts_line(summary)


def test_refusals_carry_the_servers_words() -> None:
    with serving(steady(0, 0), status=429, text='{"error": {"message": "the queue is full"}}') as stub:
        outcomes, _ = run(asked := load(base_url=stub.base_url, num_prompts=1), plan(asked))
    says(str(outcomes[0].error), "HTTP 429", "queue is full")


def test_no_server_is_an_error_of_every_request() -> None:
    outcomes, _ = run(asked := load(num_prompts=2), plan(asked))
    assert all(one.error is not None and "refused" in one.error for one in outcomes)


def test_statistics_are_those_of_numpy() -> None:
    times = [0.010, 0.020, 0.060]
    outcomes = [
        Outcome(sent=0.0, ttft=t, itls=[t, 2 * t], latency=3 * t, input_tokens=5, output_tokens=3) for t in times
    ]
    summary = summarize(load(num_prompts=3), outcomes, 2.0)
    assert summary["mean_ttft_ms"] == pytest.approx(30)
    assert summary["median_ttft_ms"] == pytest.approx(20)
    assert summary["p99_ttft_ms"] == pytest.approx(np.percentile([10, 20, 60], 99))
    assert summary["mean_tpot_ms"] == pytest.approx(30)
    assert summary["mean_itl_ms"] == pytest.approx(45)
    assert summary["mean_e2el_ms"] == pytest.approx(90)
    assert (summary["output_throughput"], summary["total_token_throughput"]) == (4.5, 12.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_prompts", 0),
        ("num_prompts", 100_001),
        ("input_len", 0),
        ("output_len", 0),
        ("max_concurrency", 0),
        ("range_ratio", 1.0),
        ("request_rate", 0.0),
        ("request_rate", math.nan),
        ("vocab_size", FIRST_ID),
        ("timeout", 0.0),
        ("base_url", "127.0.0.1:8000"),
        ("base_url", "http://host:port"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    named = rf"({name}|--{name.replace('_', '-')})"
    with pytest.raises(ValueError, match=rf"^{named} must be .*{str(value)[:4]}"):
        load(**{name: value})
