"""A peer's process: what it answers is believed only as far as it makes sense."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from moejax.bench.peers import Runner, Settings
from moejax.bench.process import PeerFailed, PeerProcess
from moejax.bench.worker import serve_lines
from tests.messages import refuses, says
from tests.moejax.bench.fakes import SETTINGS, command

PROMPTS = [[5, 6], [7, 8]]


@contextmanager
def peer(behaviour: str) -> Iterator[PeerProcess]:
    with PeerProcess("fake", command(behaviour)) as process:
        yield process


def test_a_peer_loads_runs_serves_and_scores() -> None:
    with peer("right") as process:
        process.load(SETTINGS)
        assert (process.how, process.serve_how, process.serves) == ("fake, bfloat16", "one by one", True)
        run = process.run(PROMPTS, 3)
        assert (run.tokens, run.prefill_seconds, run.decode_seconds) == ([[7, 8, 9], [9, 10, 11]], 0.5, 1.0)
        assert process.serve(PROMPTS, [1, 2]).tokens == [[7], [9, 10]]
        assert process.score(PROMPTS, [[7, 8], [0, 0]]) == [[0.0, 0.0], [4.0, 4.0]]


@pytest.mark.parametrize(
    ("behaviour", "facts"),
    [
        ("raises", ("fake cannot load", "RuntimeError", "no such layer")),
        ("noise", ("fake", "'Loading weights: 100%'", "JSON")),
        ("list", ("fake cannot load: [1, 2]",)),
    ],
)
def test_a_peer_that_does_not_load_is_told_in_one_line(behaviour: str, facts: tuple[str, ...]) -> None:
    with peer(behaviour) as process, refuses(PeerFailed, *facts):
        process.load(SETTINGS)


@pytest.mark.parametrize(
    ("behaviour", "facts"),
    [
        ("short", ("fake", "[3, 2]", "expected [3, 3]")),
        ("dies", ("fake", "exit code 3", "as it were")),
    ],
)
def test_a_run_that_failed_is_told_in_one_line(behaviour: str, facts: tuple[str, ...]) -> None:
    with peer(behaviour) as process:
        process.load(SETTINGS)
        with refuses(PeerFailed, *facts):
            process.run(PROMPTS, 3)


def test_running_before_loading_is_an_answer_and_not_the_end() -> None:
    with peer("right") as process:
        with refuses(PeerFailed, "cannot run", "ValueError", "load"):
            process.run(PROMPTS, 1)
        process.load(SETTINGS)


def test_the_process_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moejax.bench.process.ENDING_SECONDS", 300)  # however busy the machine: it is not killed
    with peer("right") as process:
        running = process._process
        assert running.poll() is None
    assert running.poll() == 0


def test_a_process_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moejax.bench.process.ENDING_SECONDS", 0.1)
    with PeerProcess("fake", ["sleep", "600"]) as process:
        running = process._process
    assert running.poll() == -9


def test_a_process_that_answers_no_more_but_runs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moejax.bench.process.ENDING_SECONDS", 0.1)
    code = "import os, sys, time; print('out of luck', file=sys.stderr); os.close(1); time.sleep(600)"
    with PeerProcess("fake", [sys.executable, "-c", code]) as process, refuses(PeerFailed, "fake", "out of luck"):
        process.load(SETTINGS)


def test_the_worker_answers_every_line() -> None:
    def load(settings: Settings) -> Runner:
        raise KeyError(settings.dtype)

    requests = [
        {"op": "serve"},
        {"op": "load", "settings": vars(SETTINGS)},
        {"op": "load", "settings": {**vars(SETTINGS), "typo": 1}},
    ]
    answers = io.StringIO()
    serve_lines(io.StringIO("".join(f"{json.dumps(one)}\n" for one in requests)), answers, load)
    errors = [json.loads(line)["error"] for line in answers.getvalue().splitlines()]
    says(errors[0], "ValueError", "serve", "load")
    assert errors[1] == "KeyError: 'bfloat16'"
    says(errors[2], "typo")
