"""Compiled programs are few and shared, JAX compiles nothing behind our back, and the statistics say what happened."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import pytest

import moejax
from moejax import SamplingParams
from moejax.decoding import engine
from moejax.runtime.programs import Programs
from tests.moejax.decoding.tiny_checkpoint import Tiny

COMPILED = "/jax/core/compile/backend_compile_duration"  # also where the persistent cache has the program
TRACED = "/jax/core/compile/jaxpr_trace_duration"


@contextmanager
def events() -> Iterator[list[str]]:
    """Names of the durations that JAX reports within."""
    names: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        names.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def model(tiny: Tiny) -> moejax.Model:
    """The model without compiled programs."""
    return dataclasses.replace(tiny.model, programs=Programs(tiny.model.parallel.sharding()))


def test_listener_hears_jax_compile() -> None:
    with events() as heard:
        jax.jit(lambda x: x * 3 + len(heard))(np.float32(1))
    assert heard.count(COMPILED) == 1 and heard.count(TRACED) >= 1


def test_prompts_and_lengths_within_a_bucket_share_their_programs(model: moejax.Model) -> None:
    rng = np.random.default_rng(0)
    moejax.decode(model, [[1, 2], [3], [4]], max_tokens=5)
    assert model.programs.compiled == 3  # empty state, extend, generate
    for lengths, max_tokens in (((16, 1, 7, 9), 48), ((2, 2, 2), 1), ((1, 16, 3), 33), ((5, 8, 13, 16), 40)):
        prompts = [rng.integers(0, 300, length).tolist() for length in lengths]
        for result in moejax.decode(model, prompts, max_tokens=max_tokens):
            assert len(result.token_ids) == max_tokens
    assert model.programs.compiled == 3
    list(moejax.decode(model, [[5], [6], [7]], max_tokens=20, stream=True))
    moejax.decode(model, ["a", "the list"] * 2, max_tokens=20, stop="é")
    moejax.decode(dataclasses.replace(model, eos_token_ids=(7,)), [[5], [6], [7]], max_tokens=20)
    moejax.decode(model, [[5], [6], [7]], max_tokens=20, stop_token_ids=[9])
    assert model.programs.compiled == 3


def test_parameters_are_data_of_the_programs(model: moejax.Model) -> None:
    sampled = SamplingParams(temperature=1.0, top_k=5, repetition_penalty=1.1, min_tokens=1, max_tokens=6)
    prompts = [[1] * 129, [2], [3, 4], [5]]
    moejax.decode(model, prompts, sampled)
    compiled = model.programs.compiled
    for given in (
        SamplingParams(temperature=0.3, top_p=0.5, presence_penalty=1, min_tokens=4, max_tokens=30, seed=1),
        SamplingParams(temperature=2, min_p=0.5, frequency_penalty=-1, min_tokens=2, max_tokens=9, stop_token_ids=[5]),
    ):
        moejax.decode(model, prompts, [sampled, given, given, sampled])
        moejax.decode(model, prompts, [given, dataclasses.replace(sampled, temperature=0), sampled, given])
    assert model.programs.compiled == compiled


def test_jax_compiles_what_is_counted_and_nothing_else(model: moejax.Model) -> None:
    params = SamplingParams(temperature=1.0, top_k=7, presence_penalty=0.5, min_tokens=2, max_tokens=9, n=2)
    prompts = [[5] * 140, [7]]
    moejax.decode(model, prompts, params)
    before = model.programs.compiled
    for again in (prompts, [[8], [9] * 200]):
        with events() as heard:
            moejax.decode(model, again, params)
            list(moejax.decode(model, again, params, stream=True))
        assert heard.count(COMPILED) == heard.count(TRACED) == 0
    assert model.programs.compiled == before


def test_first_call_counts_every_compilation(model: moejax.Model) -> None:
    """Also the small ones that an operation outside of a compiled program would be."""
    jax.clear_caches()
    with events() as heard:
        (result, *_) = moejax.decode(model, [[3]] * 4, max_tokens=2)
    assert model.programs.compiled == 3
    assert heard.count(COMPILED) == 3
    assert result.stats.compile_seconds > 0


def test_logits_share_programs_by_width(model: moejax.Model) -> None:
    first = moejax.logits(model, [[1], [2, 3], list(range(16))])
    assert [logits.shape for logits in first] == [(1, 300), (2, 300), (16, 300)]
    assert model.programs.compiled == 1
    moejax.logits(model, [list(range(17))])
    assert model.programs.compiled == 2


# --- statistics ---


def test_compilation_is_in_no_other_time(model: moejax.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that compiling moves on by 1000 seconds."""
    now, compiling = time.perf_counter, 0.0
    lower = jax.stages.Lowered.compile

    def slow(self: jax.stages.Lowered, *args: Any, **settings: Any) -> jax.stages.Compiled:
        nonlocal compiling
        compiling += 1000
        return lower(self, *args, **settings)

    monkeypatch.setattr(time, "perf_counter", lambda: now() + compiling)
    monkeypatch.setattr(jax.stages.Lowered, "compile", slow)
    first, second = (moejax.decode(model, [[1, 2], [3]], max_tokens=6)[0].stats for _ in range(2))
    assert 3000 < first.compile_seconds < 4000
    assert second.compile_seconds == 0
    for stats in (first, second):
        assert 0 < stats.ttft_seconds < 1000
        assert 0 < stats.prefill_seconds < 1000
        assert 0 < stats.decode_seconds < 1000


def test_times_add_up(tiny: Tiny) -> None:
    moejax.decode(tiny.model, [[1, 2], [3]], max_tokens=40)  # compiles
    began = time.perf_counter()
    first, second = (result.stats for result in moejax.decode(tiny.model, [[1, 2], [3]], max_tokens=40))
    wall = time.perf_counter() - began
    for stats in (first, second):
        assert stats.compile_seconds == 0
        assert 0 < stats.prefill_seconds <= stats.ttft_seconds
        assert 0 < stats.decode_seconds
        assert stats.ttft_seconds + stats.decode_seconds <= wall
        assert stats.decode_tokens_per_second == pytest.approx(39 / stats.decode_seconds)
    assert (first.prompt_tokens, second.prompt_tokens) == (2, 1)
    assert (first.generated_tokens, second.generated_tokens) == (40, 40)


def test_one_token_is_all_prefill(tiny: Tiny) -> None:
    stats = moejax.decode(tiny.model, [1, 2], max_tokens=1)[0].stats
    assert stats.generated_tokens == 1
    assert (stats.decode_seconds, stats.decode_tokens_per_second) == (0, 0)
    assert stats.ttft_seconds > 0


@pytest.mark.parametrize("max_rows", [4, 2])
def test_speed_is_over_all_batches_of_a_prompt(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, max_rows: int) -> None:
    """Three outputs in one batch or two, on a clock that each call of the decode loop moves on by 1000 seconds."""
    now, calls = time.perf_counter, 0
    call = Programs.call

    def slow(self: Programs, key: tuple[object, ...], *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += key[0] == "generate"
        return call(self, key, *args, **options)

    monkeypatch.setattr(time, "perf_counter", lambda: now() + 1000 * calls)
    monkeypatch.setattr(Programs, "call", slow)
    monkeypatch.setattr(engine, "MAX_SEQUENCES", max_rows)
    params = SamplingParams(max_tokens=7, n=3, temperature=1.0, seed=1)
    (result,) = moejax.decode(tiny.model, [68, 15], params)
    assert calls == -(-3 // max_rows)
    calls, whole = 0, result.stats
    assert whole.decode_tokens_per_second == pytest.approx(18 / (1000 * -(-3 // max_rows)), rel=0.1)
    *_, last = moejax.decode(tiny.model, [68, 15], params, stream=True)
    assert last.stats is not None
    assert last.stats.decode_tokens_per_second == pytest.approx(18 / (1000 * calls), rel=0.1)
    assert whole.generated_tokens == last.stats.generated_tokens == 21


def test_waiting_for_an_earlier_batch_delays_the_first_token(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_SEQUENCES", 1)
    first, second = (result.stats for result in moejax.decode(tiny.model, [[68], [15]], max_tokens=20))
    assert second.ttft_seconds > first.ttft_seconds + first.decode_seconds
    assert first.padded_rows == second.padded_rows == 0


@pytest.mark.parametrize(("prompts", "padded"), [(1, 0), (2, 0), (3, 1), (4, 0), (5, 3)])
def test_rows_that_are_padding(tiny: Tiny, prompts: int, padded: int) -> None:
    results = moejax.decode(tiny.model, [[n] for n in range(prompts)], max_tokens=2)
    assert {result.stats.padded_rows for result in results} == {padded}
