"""The baseline: which one is taken, what it is asked, and its process. The server's tests race it."""

import asyncio
import copy
import dataclasses
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import moejax
from moejax.serving import baseline, baseline_worker
from moejax.serving.baseline import NO_BASELINE, Emit, Implementation, Task, choose, make_task
from moejax.serving.baseline_process import BaselineBusy, BaselineFailed, BaselineProcess
from tests.messages import refuses, says
from tests.moejax.decoding.tiny_checkpoint import Tiny, load_tiny
from tests.moejax.test_loading_release import WEIGHTS, released, write_release

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tiny]:
    folder = tmp_path_factory.mktemp("baseline") / "tiny"
    return str(folder), load_tiny(folder, num_hidden_layers=1)


def process_of(source: str, **settings: float) -> BaselineProcess:
    return BaselineProcess(choose("plain", source), **settings)


def start(process: BaselineProcess):
    return process.start(dtype="float32", platform="cpu")


# --- which ---


def test_auto_takes_transformers_where_it_can_run() -> None:
    choice = choose("auto", "demo")
    assert (choice.kind, choice.available) == ("transformers", True)
    assert choice.facts() == {"name": "transformers", "available": True, "reason": choice.reason}


def test_auto_says_why_it_takes_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    random = choose("auto", "random:mixtral-8x7b")
    assert random.kind == "plain"
    says(random.reason, "random")
    monkeypatch.setattr(baseline, "PACKAGES", ("torch", "no_such_package"))
    missing = choose("auto", "demo")
    assert missing.kind == "plain"
    says(missing.reason, "no_such_package")


def test_converted_checkpoint_has_the_plain_baseline(tmp_path: Path, tiny: tuple[str, Tiny]) -> None:
    moejax.convert(tiny[0], tmp_path / "converted")
    choice = choose("auto", str(tmp_path / "converted"))
    assert choice.kind == "plain"
    assert "was converted" in choice.reason


def test_mistrals_own_layout_has_the_plain_baseline(tmp_path: Path) -> None:
    choice = choose("auto", str(write_release(tmp_path / "release", released(WEIGHTS))))
    assert choice.kind == "plain" and "own layout" in choice.reason


def test_none_is_none_and_an_explicit_name_never_becomes_another() -> None:
    assert choose("none", "demo") == NO_BASELINE
    assert not NO_BASELINE.available
    assert choose("plain", "demo").kind == "plain"
    with refuses(ValueError, "baseline=transformers", "random"):
        choose("transformers", "random:mixtral-8x7b")
    with refuses(ValueError, "baseline", "auto, transformers, plain, none", "got 'hf'"):
        choose("hf", "demo")


# --- what ---


def test_task_has_the_parameters_of_the_request() -> None:
    params = moejax.SamplingParams(max_tokens=7, temperature=0.5, top_p=0.9, top_k=3, seed=11, stop="x")
    task = make_task(PROMPT, params, (1, 2))
    assert (task.prompt, task.stop_ids, task.max_tokens) == (PROMPT, (1, 2), 7)
    assert (task.temperature, task.top_p, task.top_k, task.seed) == (0.5, 0.9, 3, 11)


@pytest.mark.parametrize("given", [{"n": 2, "temperature": 1.0}, {"logprobs": 0}, {"presence_penalty": 0.1}], ids=str)
def test_what_the_baseline_does_not_do_is_refused_by_name(given: dict) -> None:
    with refuses(ValueError, f"no {next(iter(given))}", "got"):
        make_task(PROMPT, moejax.SamplingParams(**given), ())


# --- its process ---


def test_compiling_is_not_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token takes a second on this clock, and the second one compiles for a thousand before it comes."""
    clock = SimpleNamespace(now=50.0, excluded=7.0)
    monkeypatch.setattr(baseline_worker, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def generate(task: Task, emit: Emit) -> None:
        for token in task.prompt:
            clock.now += 1
            if token == 6:
                clock.now += 1000
                clock.excluded += 1000
            emit(token)

    implementation = Implementation(description="x", generate=generate, excluded_seconds=lambda: clock.excluded)
    said: list[dict] = []
    task = dataclasses.replace(baseline_worker.WARM_UP, prompt=[5, 6, 7])
    baseline_worker._do(implementation, task, lambda: False, lambda reply: said.append(copy.deepcopy(reply)))
    assert said[-1] == {"done": True}
    assert [token for reply in said[:-1] for token in reply["tokens"]] == [5, 6, 7]
    assert [seconds for reply in said[:-1] for seconds in reply["times"]] == [1.0, 2.0, 3.0]


def test_process_generates_what_decode_does_survives_a_cancelled_run_and_ends_when_idle(tiny: tuple[str, Tiny]) -> None:
    source, loaded = tiny
    greedy, sampled = moejax.SamplingParams(max_tokens=12), moejax.SamplingParams(max_tokens=6, temperature=1.0, seed=5)
    (expected,) = moejax.decode(loaded.model, PROMPT, greedy, ignore_eos=True)
    stop_id = expected.token_ids[4]

    async def tokens(process: BaselineProcess, params: moejax.SamplingParams, stops: tuple[int, ...]) -> list[int]:
        pairs = [pair async for some in process.run(make_task(PROMPT, params, stops)) for pair in some]
        times = [seconds for _, seconds in pairs]
        assert times == sorted(times)
        assert 0 < times[0]
        return [token for token, _ in pairs]

    async def story() -> None:
        process = process_of(source, idle_seconds=0.05)
        process.reserve()
        with pytest.raises(BaselineBusy):
            process.reserve()
        await start(process)
        await asyncio.sleep(0.1)  # while a race has it, it is not idle
        try:
            pid = process.pid
            assert "without a cache, every expert computed, float32, cpu" in process.description
            assert await tokens(process, greedy, ()) == expected.token_ids
            first_stop = expected.token_ids.index(stop_id)
            assert await tokens(process, greedy, (stop_id,)) == expected.token_ids[: first_stop + 1]
            run = process.run(make_task(PROMPT, moejax.SamplingParams(max_tokens=100), ()))
            ((first, _),) = await anext(run)
            assert first == expected.token_ids[0], "the first token waits for others"
            await run.aclose()
            assert await tokens(process, greedy, ()) == expected.token_ids, "the cancelled run's tokens came first"
            assert await tokens(process, sampled, ()) == await tokens(process, sampled, ())
            assert process.pid == pid
            process.release()
            async with asyncio.timeout(300):
                while process.pid is not None:
                    await asyncio.sleep(0.02)
        finally:
            await process.close()
        with pytest.raises(ProcessLookupError):
            os.kill(pid or 0, 0)

    asyncio.run(story())


def test_what_cannot_be_loaded_is_said_and_leaves_no_process(tmp_path: Path) -> None:
    async def story() -> None:
        process = process_of(str(tmp_path / "nowhere"))
        with refuses(BaselineFailed, "plain moejax", "ValueError", "no folder"):
            await start(process)
        assert process.pid is None

    asyncio.run(story())


def test_process_that_ends_is_an_error_and_not_silence() -> None:
    async def story() -> None:
        process = process_of("demo")
        starting = asyncio.create_task(start(process))
        while process.pid is None:
            await asyncio.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        with refuses(BaselineFailed, "plain moejax", "signal 9"):
            await starting
        assert process.pid is None

    asyncio.run(story())


DYING = """#!{python}
import os, signal
input()
print('{{"ready": "it will die"}}', flush=True)
input()
print('{{"tokens": [5], "times": [0.1]}}', flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_process_that_dies_in_a_run_is_told_and_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(DYING.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    async def story() -> None:
        process = process_of("demo")
        pids = set()
        for _ in range(2):
            await start(process)
            pids.add(process.pid)
            run = process.run(make_task(PROMPT, moejax.SamplingParams(max_tokens=9), ()))
            assert await anext(run) == [(5, 0.1)]
            with refuses(BaselineFailed, "plain moejax", "signal 9"):
                await anext(run)
            assert process.pid is None
        assert len(pids) == 2
        await process.close()

    asyncio.run(story())
