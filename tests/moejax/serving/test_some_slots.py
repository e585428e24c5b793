"""Steps for fewer slots than the batch has: the same tokens, and nothing else is touched."""

import asyncio
import itertools
from typing import Any

import jax
import numpy as np
import pytest

import moejax
from moejax.decoding.sequences import Sequence
from moejax.decoding.shapes import FeedShape, Part, StepShape
from moejax.decoding.slots import Slots
from moejax.decoding.some_slots import generate_some
from moejax.decoding.state import Features
from moejax.serving.limits import served_features
from moejax.serving.settings import EngineSettings
from moejax.serving.shapes import make_shapes
from tests.moejax.compiled import made
from tests.moejax.serving.conftest import SIZES
from tests.moejax.serving.live import finished, job, make_engine, scheduler_of, wait_until_ready

numbers = itertools.count()


def test_steps_are_as_wide_as_what_runs(model: "moejax.Model", monkeypatch: pytest.MonkeyPatch) -> None:
    """Four requests, of which one goes on alone."""
    engine = make_engine(model, **SIZES)
    engine.start()
    wait_until_ready(engine)
    slots, widths = scheduler_of(engine).slots, []
    run = slots._run_generate

    def noted(features: Features, shape: StepShape, *rest: Any) -> Any:
        widths.append((shape.slots, len(slots.running)))
        return run(features, shape, *rest)

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
    assert [one.sequences[0].tokens for one in jobs] == [result.token_ids for result in alone]
    assert {width for width, _ in widths} == {1, 4}
    assert all((width == 1) == (running == 1) for width, running in widths)


def make_slots(model: "moejax.Model") -> Slots:
    shapes = make_shapes(model, EngineSettings(**SIZES))
    return Slots(model, shapes, served_features(model.config.vocab_size), entropy=0)


def fed(slots: Slots, prompt: list[int], slot: int, parts: int | None = None) -> Sequence:
    """A sequence in a slot, whose prompt was fed as far as `parts` parts go."""
    group = job(slots.model, prompt, next(numbers), max_tokens=8).group
    shape: FeedShape = slots.shapes.feeds[-1]  # type: ignore[attr-defined]
    for start in range(0, len(prompt), slots.shapes.chunk)[:parts]:
        slots.feed([Part(group, tuple(group.sequences), start, slot, (slot,))], shape)
    return group.sequences[0]


def test_slots_that_do_not_generate_keep_their_cache(model: "moejax.Model") -> None:
    """Slot 1 fills up the width: its prompt is fed past the end of the short cache that the steps work on."""

    async def main() -> None:
        slots = make_slots(model)
        prompt = np.random.default_rng(3).integers(0, 300, 310).tolist()
        other = fed(slots, list(range(9, 49)), 0)
        fed(slots, prompt, 1, parts=9)  # 288 tokens
        before = [np.asarray(layer.k[1]) for layer in slots._state.cache]
        step = jax.jit(
            lambda params, *args: generate_some(model.merged(params), slots.feature_sets[0], 256, *args),
            donate_argnums=1,
        )
        chosen, idle = np.array([0, 1], np.int32), np.array([False, True])
        slots._state, generated = step(model.params, slots._state, chosen, idle, np.int32(6), np.int32(0))
        after = [np.asarray(layer.k[1]) for layer in slots._state.cache]
        np.testing.assert_array_equal(after, before)
        tokens = np.asarray(generated.outputs.token)[:6]
        assert tokens[:, 1].tolist() == [-1] * 6
        expected = moejax.decode(model, [other.request.prompt], max_tokens=8)[0].token_ids
        assert tokens[:, 0].tolist() == expected[1:7]

    asyncio.run(main())


def test_the_servers_cache_is_updated_in_place(model: "moejax.Model") -> None:
    """The program for one slot makes no array as large as a layer's cache but by writing into it."""
    slots = make_slots(model)
    slots.warm_up((slots.feature_sets[0], StepShape(1, 256)))
    size = slots._state.cache[0].k.size
    programs = {key: program for key, program in model.programs.by_key().items() if "generate" in str(key)}
    (program,) = (
        program
        for key, program in programs.items()
        if isinstance(key, tuple) and key[1] == slots.feature_sets[0] and key[2:] == (4, 320, StepShape(1, 256))
    )
    text = program.as_text()
    assert text is not None
    whole = [one for one, array in made(text) if array.size == size]
    assert len(whole) >= 2  # keys and values
    assert [one.text for one in whole if "dynamic-update-slice" not in one.text.replace("_", "-")] == []
