"""`adecode`: what `decode` gives, while the event loop goes on."""

import asyncio
from typing import Any

import jax
import numpy as np
import pytest

import moejax
from tests.messages import refuses
from tests.moejax.decoding.tiny_checkpoint import Tiny

PROMPTS = [[5, 9, 200, 7], [0, 17, 42], [3]]


def test_results_of_calls_at_the_same_time_are_those_of_each_alone(tiny: Tiny) -> None:
    async def together() -> list[list[moejax.DecodeResult]]:
        calls = (moejax.adecode(tiny.model, prompt, max_tokens=6 + len(prompt)) for prompt in PROMPTS)
        return await asyncio.gather(*calls)

    found = [result.token_ids for (result,) in asyncio.run(together())]
    alone = [moejax.decode(tiny.model, prompt, max_tokens=6 + len(prompt))[0].token_ids for prompt in PROMPTS]
    assert found == alone and [len(ids) for ids in found] == [10, 9, 7]


def test_events_of_streams_at_the_same_time(tiny: Tiny) -> None:
    async def collect(prompt: list[int]) -> str:
        return "".join([e.text async for e in moejax.adecode(tiny.model, prompt, max_tokens=12, stream=True)])

    async def together() -> list[str]:
        return await asyncio.gather(*map(collect, PROMPTS))

    assert asyncio.run(together()) == [one.text for one in moejax.decode(tiny.model, PROMPTS, max_tokens=12)]


def test_the_event_loop_goes_on(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of a program waits for what only the event loop can do: if that were blocked, it would wait for ever."""

    async def main() -> int:
        loop, call, turns = asyncio.get_running_loop(), tiny.model.programs.call, 0

        async def turn() -> None:
            nonlocal turns
            turns += 1

        def waiting(*args: Any, **options: Any) -> Any:
            asyncio.run_coroutine_threadsafe(turn(), loop).result(timeout=60)
            return call(*args, **options)

        monkeypatch.setattr(tiny.model.programs, "call", waiting)
        await moejax.adecode(tiny.model, PROMPTS, max_tokens=4)
        return turns

    assert asyncio.run(main()) >= 2


def test_a_stream_that_is_left_and_a_call_that_is_cancelled_hold_nothing_up(tiny: Tiny) -> None:
    async def main() -> list[int]:
        async for _ in moejax.adecode(tiny.model, PROMPTS, max_tokens=200, stream=True):
            break
        task = asyncio.ensure_future(moejax.adecode(tiny.model, PROMPTS, max_tokens=200))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (result,) = await moejax.adecode(tiny.model, PROMPTS[0], max_tokens=3)
        return result.token_ids

    assert asyncio.run(main()) == moejax.decode(tiny.model, PROMPTS[0], max_tokens=3)[0].token_ids


@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_those_of_decode(tiny: Tiny, stream: bool) -> None:
    async def main() -> None:
        if stream:
            async for _ in moejax.adecode(tiny.model, [[300]], stream=True):
                pass
        else:
            await moejax.adecode(tiny.model, [[300]])

    with refuses(ValueError, "prompt 0", 300, "0 to 299"):
        asyncio.run(main())


def test_arrays_are_prompts(tiny: Tiny) -> None:
    lists = [[5, 9, 200], [7, 0, 17]]
    expected = [one.token_ids for one in moejax.decode(tiny.model, lists, max_tokens=4)]
    for given in (np.array(lists), jax.numpy.array(lists), [np.array(lists[0]), jax.numpy.array(lists[1])]):
        assert [one.token_ids for one in moejax.decode(tiny.model, given, max_tokens=4)] == expected
    (one,) = moejax.decode(tiny.model, jax.numpy.array(lists[0]), max_tokens=4)
    assert one.token_ids == expected[0]
    for wrong in (np.zeros((2, 2, 2), np.int32), np.array(3), np.array([[1.0, 2.0]]), np.array([[True]])):
        with refuses(ValueError, "token ids", "got"):
            moejax.decode(tiny.model, wrong)


def test_short_reprs(tiny: Tiny) -> None:
    results = moejax.decode(tiny.model, [PROMPTS[0]], max_tokens=100, temperature=1.0, seed=0, n=5, logprobs=1)
    for shown in (repr(tiny.model), repr(results), repr(results[0].outputs[0])):
        assert len(shown) < 500 and "\n" not in shown
    assert all(word in repr(tiny.model) for word in ("mixtral", "float32", "native", "replicated", "max_seq_len 1024"))
    assert all(word in repr(results[0]) for word in ("4 prompt tokens", "100 tokens", "length", "and 2 more"))
