"""Steps for fewer rows than the server has: the same tokens, and nothing else is touched."""

import asyncio
import itertools
from typing import Any

import jax
import numpy as np
import pytest

import moejax
from moejax.decoding.rows import Row
from moejax.decoding.some_rows import generate_some
from moejax.serving.settings import EngineSettings
from moejax.serving.shapes import StepShape, make_shapes
from moejax.serving.slots import Part, Slots
from tests.moejax.compiled import made
from tests.moejax.serving.conftest import SIZES
from tests.moejax.serving.live import finished, job, make_engine, wait_until_ready

numbers = itertools.count()


def test_steps_are_as_wide_as_the_rows_that_run(model: "moejax.Model", monkeypatch: pytest.MonkeyPatch) -> None:
    """Four requests, of which one goes on alone."""
    engine = make_engine(model, **SIZES)
    engine.start()
    wait_until_ready(engine)
    assert engine._scheduler is not None
    slots, widths = engine._scheduler.slots, []
    run = slots._run_generate

    def noted(level: int, shape: StepShape, *rest: Any) -> Any:
        widths.append((shape.rows, slots.running))
        return run(level, shape, *rest)

    monkeypatch.setattr(slots, "_run_generate", noted)
    lengths = (5, 40, 5, 250)

    async def main() -> list[Any]:
        with engine.paused():
            jobs = [job(model, [7, 8, length], next(numbers), max_tokens=length) for length in lengths]
            engine.submit(jobs)
        return [await finished(one) for one in jobs]

    jobs = asyncio.run(main())
    engine.stop()
    alone = moejax.decode(model, [one.request.prompt for one in jobs], [one.request.params for one in jobs])
    assert [one.rows[0].tokens for one in jobs] == [result.token_ids for result in alone]
    assert {width for width, _ in widths} == {1, 4}
    assert all((width == 1) == (running == 1) for width, running in widths)


def fed(slots: Slots, prompt: list[int], slot: int, parts: int | None = None) -> Row:
    """A row in a slot, whose prompt was fed as far as `parts` parts go."""
    one = job(slots.model, prompt, next(numbers), max_tokens=8).rows[0]
    for start in range(0, len(prompt), slots.shapes.chunk)[:parts]:
        slots.feed([Part(one, start, slot, slot)])
    return one


def test_rows_that_do_not_generate_keep_their_cache(model: "moejax.Model") -> None:
    """Slot 1 fills up the width: its prompt is fed past the end of the short cache that the steps work on."""

    async def main() -> None:
        slots = Slots(model, make_shapes(model, EngineSettings(**SIZES)))
        prompt = np.random.default_rng(3).integers(0, 300, 310).tolist()
        other = fed(slots, list(range(9, 49)), 0)
        fed(slots, prompt, 1, parts=9)  # 288 tokens
        before = [np.asarray(layer.k[1]) for layer in slots._state.cache]
        step = jax.jit(
            lambda params, *args: generate_some(model.merged(params), slots.levels[0], 256, *args), donate_argnums=1
        )
        rows, idle = np.array([0, 1], np.int32), np.array([False, True])
        slots._state, generated = step(model.params, slots._state, rows, idle, np.int32(6))
        after = [np.asarray(layer.k[1]) for layer in slots._state.cache]
        np.testing.assert_array_equal(after, before)
        tokens = np.asarray(generated.outputs.token)[:6]
        assert tokens[:, 1].tolist() == [-1] * 6
        expected = moejax.decode(model, [other.request.prompt], max_tokens=8)[0].token_ids
        assert tokens[:, 0].tolist() == expected[1:7]

    asyncio.run(main())


def test_the_servers_cache_is_updated_in_place(model: "moejax.Model") -> None:
    """The program for one row makes no array as large as a layer's cache but by writing into it."""
    slots = Slots(model, make_shapes(model, EngineSettings(**SIZES)))
    slots.warm_up()
    size = slots._state.cache[0].k.size
    programs = {key: program for key, program in model.programs.by_key().items() if "generate" in str(key)}
    (program,) = (
        program
        for key, program in programs.items()
        if isinstance(key, tuple) and key[1] == slots.levels[0] and key[2:] == (4, 320, StepShape(1, 256))
    )
    text = program.as_text()
    assert text is not None
    whole = [one for one, array in made(text) if array.size == size]
    assert len(whole) >= 2  # keys and values
    assert [one.text for one in whole if "dynamic-update-slice" not in one.text.replace("_", "-")] == []
