"""A server's start: what it needs for a first answer comes first."""

import asyncio
import threading
import time
from typing import Any

import pytest

import moejax
from moejax.decoding.slots import Slots
from moejax.serving.engine import FIRST_PROGRAMS
from tests.moejax.serving.live import WAIT_SECONDS, finished, job, make_engine, wait_until_ready


def test_a_request_is_answered_before_the_last_program_is_there(
    model: "moejax.Model", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ready with the first two programs; the others come when nothing is to be done, one at a time."""
    warm_up, submitted, warmed = Slots.warm_up, threading.Event(), []

    def slowly(slots: Slots, program: Any) -> None:
        if len(warmed) == FIRST_PROGRAMS:
            assert submitted.wait(WAIT_SECONDS)
        warm_up(slots, program)
        warmed.append(program)

    monkeypatch.setattr(Slots, "warm_up", slowly)
    one = make_engine(model, max_batch=4, max_queue=100, prefill_chunk=32)

    async def main() -> tuple[int, int]:
        asked = job(model, [5, 6, 7], 0, max_tokens=4)
        one.submit([asked])
        submitted.set()
        await asyncio.wait_for(finished(asked), WAIT_SECONDS)
        return one.programs

    one.start()
    try:
        until = time.monotonic() + WAIT_SECONDS
        while one.status == "loading" and time.monotonic() < until:
            time.sleep(0.01)
        assert (one.status, one.programs[0]) == ("ready", FIRST_PROGRAMS)
        there, in_all = asyncio.run(main())
        assert there < in_all
        wait_until_ready(one)
        assert len(warmed) == len(set(warmed)) == in_all
    finally:
        submitted.set()
        one.stop()
