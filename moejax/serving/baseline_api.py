"""`/v1/moejax/baseline/...`: the answers of the plain implementation, streamed as those of the engine are.

The engine is held between two of its calls meanwhile, so that each has the machine to itself while its clock runs.
Other requests wait that long: a run has a limit, and a server for others to use is started with `--baseline none`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import jax
from fastapi import APIRouter, Request, Response

from moejax.serving.baseline import Task, make_task
from moejax.serving.baseline_process import BaselineBusy, BaselineFailed, BaselineProcess
from moejax.serving.bodies import read_body
from moejax.serving.documents import ANSWERING, documented
from moejax.serving.engine import Engine
from moejax.serving.errors import ApiError
from moejax.serving.event_stream import DONE, EventStream, event
from moejax.serving.jobs import Delta, EngineError, Mailbox, ServedRequest
from moejax.serving.openai_answers import Answer
from moejax.serving.openai_api import checked_requests, make_answer
from moejax.serving.openai_requests import ChatRequest, CompletionRequest

MOST_SECONDS = 120.0  # of a run, for which the engine is held

router = APIRouter(prefix="/v1/moejax/baseline")

Chunk = dict[str, Any]

_races: set[asyncio.Task[None]] = set()  # the event loop itself keeps tasks alive only weakly


@router.post("/completions", **documented(*ANSWERING, body=CompletionRequest))
async def completions(request: Request) -> Response:
    """Continues one prompt with the baseline. Streams only."""
    return await _answer(request, await read_body(request, CompletionRequest))


@router.post("/chat/completions", **documented(*ANSWERING, body=ChatRequest))
async def chat_completions(request: Request) -> Response:
    """Answers a chat with the baseline. Streams only."""
    return await _answer(request, await read_body(request, ChatRequest))


async def _answer(request: Request, body: CompletionRequest | ChatRequest) -> Response:
    engine: Engine = request.app.state.engine
    baseline: BaselineProcess = request.app.state.baseline
    if not baseline.choice.available:
        raise ApiError(404, f"there is no baseline: {baseline.choice.reason}")
    if not body.stream:
        raise ApiError(400, "the baseline only streams: add stream=true", param="stream")
    made = await checked_requests(request, body)
    if len(made) != 1:
        raise ApiError(400, f"the baseline continues one prompt at a time, got {len(made)}", param="prompt")
    job = made[0](Mailbox())
    try:
        task = make_task(job.request.prompt, job.request.params, job.request.stop_ids)
        baseline.reserve()
    except ValueError as error:
        raise ApiError(400, str(error)) from error
    except BaselineBusy as error:
        raise ApiError(429, "another race is being run: try again when it is over", code="baseline_busy") from error
    answer = make_answer(request, body, [job], progress=True)
    chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()
    # In a task of its own, so that its end is orderly however the connection ends.
    race = asyncio.create_task(_run(engine, baseline, task, answer, chunks.put_nowait))
    _races.add(race)
    race.add_done_callback(_races.discard)

    def end() -> None:
        race.cancel()

    return EventStream(_events(chunks), end)


async def _events(chunks: "asyncio.Queue[Chunk | None]") -> AsyncGenerator[bytes, None]:
    while (chunk := await chunks.get()) is not None:
        yield event(chunk)
        if "error" in chunk:
            return
    yield DONE


async def _run(
    engine: Engine,
    baseline: BaselineProcess,
    task: Task,
    answer: Answer[ServedRequest],
    put: Callable[[Chunk | None], None],
) -> None:
    """Runs the baseline, whose process was reserved for this, and puts what it says as chunks, then None."""
    (job,) = answer.jobs
    try:
        if baseline.pid is None:
            put(_status(f"loading {baseline.choice.name} in a process of its own"))
        await baseline.start(dtype=engine.model.dtype, platform=jax.default_backend())
        async with _held(engine), asyncio.timeout(MOST_SECONDS):
            put(_status("running", description=baseline.description))
            async with aclosing(baseline.run(task)) as reports:
                async for tokens in reports:
                    chunk = answer.chunk(0, _delta(job, tokens), include_usage=False)
                    assert chunk is not None, "with progress all tokens have a chunk"
                    put(chunk)
                    if job.finished:  # at a stop string, of which the baseline knows nothing
                        break
    except (BaselineFailed, EngineError) as error:
        put(ApiError(503, str(error)).body())
    except TimeoutError:
        put(ApiError(503, f"the baseline took more than {MOST_SECONDS:.0f} s: ask for fewer tokens").body())
    finally:
        baseline.release()
        put(None)


@asynccontextmanager
async def _held(engine: Engine) -> AsyncIterator[None]:
    """Holds the engine; the event loop goes on while a call of the engine comes to its end."""
    pause = engine.paused()
    entering = asyncio.create_task(asyncio.to_thread(pause.__enter__))
    try:
        await asyncio.shield(entering)
        yield
    finally:
        await entering  # else whoever is cancelled while it enters would leave the engine held
        pause.__exit__(None, None, None)


def _status(status: str, **more: str) -> Chunk:
    return {"choices": [], "moejax": {"status": status, **more}}


def _delta(job: ServedRequest, tokens: Sequence[tuple[int, float]]) -> Delta:
    """What the sequence of `job` gains by tokens with their times; what comes after its end is dropped."""
    (sequence,) = job.sequences
    taken: list[int] = []
    texts: list[str] = []
    seconds = 0.0
    for token, time in tokens:
        if sequence.finish_reason is not None:
            break
        texts.append(sequence.push(token, None).text)
        taken.append(token)
        seconds = time
    return Delta(
        output=0,
        texts=texts,
        token_ids=taken,
        logprobs=None,
        experts=None,
        seconds=seconds,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
    )
