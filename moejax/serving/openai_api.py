"""The routes of OpenAI's API: completions, chat, models."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import ParamSpec, TypeVar

from fastapi import APIRouter, Request, Response

from moejax.serving.bodies import read_body
from moejax.serving.documents import ANSWERING, documented
from moejax.serving.engine import Engine
from moejax.serving.errors import ApiError, json_response
from moejax.serving.event_stream import DONE, EventStream, event, while_connected
from moejax.serving.failures import FAILURES, error_of
from moejax.serving.jobs import Delta, EngineError, Mailbox, QueueFull, RequestFailed, ServedRequest
from moejax.serving.openai_answers import Answer
from moejax.serving.openai_requests import ChatRequest, CompletionRequest, check_fields
from moejax.serving.prepare import MakeServed, prepare_requests
from moejax.serving.settings import AppSettings

Letter = tuple[int, list[Delta]]  # the place of a job, and what it gained
P = ParamSpec("P")
T = TypeVar("T")

router = APIRouter()


@router.post("/v1/completions", **documented(*ANSWERING, body=CompletionRequest))
async def completions(request: Request) -> Response:
    """Continues prompts."""
    return await _answer(request, await read_body(request, CompletionRequest))


@router.post("/v1/chat/completions", **documented(*ANSWERING, body=ChatRequest))
async def chat_completions(request: Request) -> Response:
    """Answers a chat, through the checkpoint's template."""
    return await _answer(request, await read_body(request, ChatRequest))


@router.post("/v1/embeddings", include_in_schema=False)
async def embeddings() -> Response:
    """Refused: no vector of a text is made here."""
    message = (
        "/v1/embeddings is not supported: this server generates text (/v1/completions, /v1/chat/completions); ask a "
        "server of an embedding model"
    )
    raise ApiError(404, message, code="unsupported_endpoint")


@router.get("/v1/models", **documented(503))
async def models(request: Request) -> Response:
    """The one model that is served."""
    return json_response({"object": "list", "data": [_model(request)]})


@router.get("/v1/models/{name:path}", **documented(404, 503))
async def model(name: str, request: Request) -> Response:
    """The model of that name."""
    check_model(request, name)
    return json_response(_model(request))


def _model(request: Request) -> dict[str, object]:
    settings: AppSettings = request.app.state.settings
    engine: Engine = request.app.state.engine
    limit = engine.model.max_seq_len
    return {
        "id": settings.model_name,
        "object": "model",
        "created": request.app.state.created,
        "owned_by": "moejax",
        "max_model_len": limit,
    }


def check_model(request: Request, name: str | None) -> None:
    """Raises ApiError for the name of a model that is not the one that is served."""
    served = request.app.state.settings.model_name
    if name is not None and name != served:
        message = f"the model {name[:80]!r} does not exist; this server has {served!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


async def checked_requests(request: Request, body: CompletionRequest | ChatRequest) -> list[MakeServed]:
    """The jobs that a body asks for.

    Raises:
        ApiError: for another model, and for what this model or this server cannot do.
    """
    check_fields(body)
    check_model(request, body.model)
    return await asyncio.to_thread(prepare_requests, request.app.state.engine, body)


def make_answer(
    request: Request, body: CompletionRequest | ChatRequest, jobs: Sequence[ServedRequest], *, progress: bool
) -> Answer[ServedRequest]:
    """The answer to a body, in the form of its route."""
    name = request.app.state.settings.model_name
    engine: Engine = request.app.state.engine
    chat, dtype = isinstance(body, ChatRequest), engine.model.dtype
    return Answer(chat=chat, model_name=name, jobs=jobs, dtype=dtype, progress=progress)


async def _answer(request: Request, body: CompletionRequest | ChatRequest) -> Response:
    engine: Engine = request.app.state.engine
    arrived = time.perf_counter()
    made = await checked_requests(request, body)
    jobs = [draft(Mailbox(whole=not body.stream)) for draft in made]
    for place, job in enumerate(jobs):
        job.arrived, job.place = arrived, place
    try:
        engine.submit(jobs, "" if request.client is None else request.client.host)
    except QueueFull as error:
        raise ApiError(429, f"{error}; try again later", code="queue_full") from error
    progress = bool(body.return_progress or body.return_routed_experts)
    answer = make_answer(request, body, jobs, progress=progress)
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(_events(answer, include_usage=include_usage), lambda: engine.cancel(jobs))
    try:
        deltas = await while_connected(_collect(jobs), request.receive)
    finally:
        engine.cancel(jobs)
    if deltas is None:
        return Response(status_code=499)  # the client has gone, and nobody reads this
    return json_response(await _worded(answer, answer.whole, deltas))


async def _worded(answer: Answer, words: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `words` makes of its arguments, beside the event loop where that takes long."""
    if not answer.takes_long:
        return words(*args, **kwargs)
    return await asyncio.to_thread(words, *args, **kwargs)


async def _collect(jobs: Sequence[ServedRequest]) -> list[list[Delta]]:
    """All deltas of each job."""

    async def collect(job: ServedRequest) -> list[Delta]:
        return [delta async for deltas in job.mailbox for delta in deltas]

    return list(await asyncio.gather(*map(collect, jobs)))


async def _events(answer: Answer[ServedRequest], *, include_usage: bool) -> AsyncGenerator[bytes]:
    """The events of a stream; an error of the engine is the last one."""
    try:
        async for at, deltas in _merged([job.mailbox for job in answer.jobs]):
            chunks = [await _worded(answer, answer.chunk, at, one, include_usage=include_usage) for one in deltas]
            if events := b"".join(event(chunk) for chunk in chunks if chunk is not None):
                yield events
    except FAILURES as error:
        yield event(error_of(error).body())
        return
    if include_usage:
        yield event(answer.last_chunk())
    yield DONE


async def _merged(mailboxes: Sequence[Mailbox]) -> AsyncIterator[Letter]:
    """What comes to any of the mailboxes, with its place among them, in the order in which it comes."""
    if len(mailboxes) == 1:
        async for deltas in mailboxes[0]:
            yield 0, deltas
        return
    letters: asyncio.Queue[Letter | EngineError | RequestFailed | None] = asyncio.Queue(maxsize=len(mailboxes))

    async def forward(at: int, mailbox: Mailbox) -> None:
        try:
            async for deltas in mailbox:
                await letters.put((at, deltas))
            await letters.put(None)
        except (EngineError, RequestFailed) as error:
            await letters.put(error)

    tasks = [asyncio.create_task(forward(at, mailbox)) for at, mailbox in enumerate(mailboxes)]
    try:
        open_ = len(tasks)
        while open_:
            letter = await letters.get()
            if isinstance(letter, EngineError | RequestFailed):
                raise letter
            if letter is None:
                open_ -= 1
            else:
                yield letter
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
