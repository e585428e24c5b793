"""A server's start: what it needs for a first answer comes first."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import moejax
from moejax.decoding.slots import Slots
from moejax.serving.engine import FIRST_PROGRAMS
from tests.messages import says
from tests.moejax.decoding.tiny_checkpoint import load_tiny
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


@pytest.mark.parametrize("second", [False, True], ids=["SIGTERM", "SIGTERM, SIGINT"])
def test_an_end_does_not_wait_for_a_compilation(tmp_path: Path, second: bool) -> None:
    """A program that is compiled for an hour, as if of a large model: the command ends all the same, with status 0."""
    folder = load_tiny(tmp_path / "tiny").model.folder
    command = [sys.executable, "-c", SLOW_PROGRAM, "serve", str(folder), "--port", "0", "--baseline", "none"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = ""
            while "compiles for ever" not in said:
                assert (line := process.stderr.readline()), said
                said += line
            process.send_signal(signal.SIGTERM)
            if second:
                process.send_signal(signal.SIGINT)
            said += process.communicate(timeout=WAIT_SECONDS)[1]
        finally:
            process.kill()
    assert process.returncode == 0, said
    says(said, "ready", "stopped: 0 requests", "0 given up")


SLOW_PROGRAM = """
import sys, time
from moejax.cli import main
from moejax.decoding.slots import Slots
warm_up, seen = Slots.warm_up, []

def slowly(slots, program):
    seen.append(program)
    if len(seen) > 2:
        print("compiles for ever", file=sys.stderr, flush=True)
        time.sleep(3600)
    warm_up(slots, program)

Slots.warm_up = slowly
main()
"""
