"""`POST /v1/moejax/baseline`: the answer of the plain implementation, streamed as a completion is.

The engine is held between two of its calls meanwhile: what races has the machine to itself, in turns. Other requests
wait that long, so a run has a limit, and a server for others to use is started with `--baseline none`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from moejax.decoding.rows import Row
from moejax.serving.baseline import Task, make_task
from moejax.serving.baseline_process import BaselineBusy, BaselineFailed, BaselineProcess
from moejax.serving.engine import Engine
from moejax.serving.errors import ApiError, json_bytes

MOST_SECONDS = 120.0  # of a run, for which the engine is held

router = APIRouter()
_races: set[asyncio.Task[None]] = set()  # asyncio itself keeps tasks alive only weakly

Put = Callable[[dict[str, Any] | None], None]


@asynccontextmanager
async def held(engine: Engine) -> AsyncIterator[None]:
    """Holds the engine; the event loop goes on while a call of the engine comes to its end."""
    pause = engine.paused()
    entering = asyncio.create_task(asyncio.to_thread(pause.__enter__))
    try:
        await asyncio.shield(entering)
        yield
    finally:
        await entering  # or else whoever is cancelled here would leave the engine held
        pause.__exit__(None, None, None)


async def _run(engine: Engine, baseline: BaselineProcess, task: Task, row: Row, put: Put) -> None:
    """Runs the baseline and puts what it says as chunks, then None. Its process was reserved for this."""
    try:
        if baseline.pid is None:
            put({"choices": [], "moejax": {"status": f"loading {baseline.choice.name} in a process of its own"}})
        await baseline.start()
        async with held(engine), asyncio.timeout(MOST_SECONDS):
            put({"choices": [], "moejax": {"status": "running", "description": baseline.description}})
            async with aclosing(baseline.run(task)) as tokens:
                async for token, seconds in tokens:
                    put(_chunk(row, token, seconds))
                    if row.finish_reason is not None:
                        break
    except BaselineFailed as error:
        put(ApiError(500, str(error)).body())
    except TimeoutError:
        put(ApiError(500, f"the baseline took more than {MOST_SECONDS:.0f} s: ask for fewer tokens").body())
    finally:
        baseline.release()
        put(None)


def _chunk(row: Row, token: int, seconds: float) -> dict[str, Any]:
    event = row.push(token, None)
    return {
        "object": "text_completion",
        "choices": [{"index": 0, "text": event.text, "finish_reason": event.finish_reason}],
        "moejax": {"token_ids": [token], "texts": [event.text], "time": seconds},
    }


async def _stream(engine: Engine, baseline: BaselineProcess, task: Task, row: Row) -> AsyncIterator[bytes]:
    """The run as server-sent events. It goes on in a task of its own, which ends when nobody reads any more."""
    chunks: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    race = asyncio.create_task(_run(engine, baseline, task, row, chunks.put_nowait))
    _races.add(race)
    race.add_done_callback(_races.discard)
    try:
        while (chunk := await chunks.get()) is not None:
            yield b"data: " + json_bytes(chunk) + b"\n\n"
        yield b"data: [DONE]\n\n"
    finally:
        race.cancel()
