"""Lines of OpenAI's batch API: the bodies of its routes, read and answered as the server does.

https://platform.openai.com/docs/api-reference/batch
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moejax.bulk.lines import Line
from moejax.bulk.work import LineWork
from moejax.decoding.api import Ended
from moejax.decoding.requests import Request
from moejax.decoding.results import DecodeResult
from moejax.decoding.sequences import Sequence as TokenSequence
from moejax.decoding.sequences import SequenceGroup
from moejax.loading import Model
from moejax.runtime.buckets import MAX_SEQUENCES
from moejax.serving.bodies import parse
from moejax.serving.errors import ApiError
from moejax.serving.jobs import Delta, Echo
from moejax.serving.openai_answers import Answer
from moejax.serving.openai_requests import ChatRequest, CompletionRequest, check_fields
from moejax.serving.prepare import prepare

ROUTES = {"/v1/completions": CompletionRequest, "/v1/chat/completions": ChatRequest}
MOST_PROMPTS = 2048  # of one line, as OpenAI has it


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A prompt that was continued, for `Answer`."""

    groups: Sequence[SequenceGroup]
    place: int
    echo: Echo | None

    @property
    def group(self) -> SequenceGroup:
        return self.groups[0]

    @property
    def request(self) -> Request:
        return self.group.request

    @property
    def sequences(self) -> list[TokenSequence]:
        return [one for group in self.groups for one in group.sequences]

    @property
    def generated(self) -> int:
        return sum(group.generated for group in self.groups)


def openai_work(line: Line, model: Model, names: Sequence[str]) -> LineWork:
    """The work of a line. names: what the body may call the model, the first as the answer does.

    Raises:
        ApiError: for what the server would refuse, too.
    """
    method, url = line.value["method"], line.value["url"]
    if method != "POST" or url not in ROUTES:
        message = f"{method!r:.20} {url!r:.80} cannot be answered; expected POST and {' or '.join(ROUTES)}"
        raise ApiError(404, message, param="url", code="invalid_url")
    raw = json.dumps(line.value["body"]).encode()
    body = parse(raw, ROUTES[url], {"prompt": MOST_PROMPTS, "tokens": model.max_seq_len})
    check_fields(body)
    if body.stream:
        raise ApiError(400, "stream=true: the answers of a file are not streamed", param="stream")
    if body.model is not None and body.model not in names:
        message = f"the model {body.model[:80]!r} does not exist; this run has {names[0]!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    prepared = prepare(model, body, slots=MAX_SEQUENCES)

    def word(ended: Sequence[Ended]) -> dict[str, Any]:
        results = [one.result for one in ended]
        if failure := next((one for one in results if isinstance(one, Exception)), None):
            return refused(line, ApiError(500, str(failure), code="request_failed"))
        jobs = [_Job(groups=one.groups, place=at, echo=prepared[at].echo) for at, one in enumerate(ended)]
        answer = Answer(chat=isinstance(body, ChatRequest), model_name=names[0], jobs=jobs, dtype=model.dtype)
        deltas = [_deltas(one) for one in results if isinstance(one, DecodeResult)]
        return _answered(line, 200, answer.whole(deltas))

    return LineWork(requests=[one.request for one in prepared], word=word)


def refused(line: Line, error: ApiError) -> dict[str, Any]:
    """The answer to a line that the server would refuse."""
    return _answered(line, error.status, error.body())


def _answered(line: Line, status: int, body: dict[str, Any]) -> dict[str, Any]:
    response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": body}
    return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": line.custom_id, "response": response, "error": None}


def _deltas(result: DecodeResult) -> list[Delta]:
    return [
        Delta(
            output=output.index,
            texts=[output.text],
            token_ids=output.token_ids,
            logprobs=output.logprobs,
            experts=None,
            seconds=0.0,
            finish_reason=output.finish_reason,
            stop_reason=output.stop_reason,
        )
        for output in result.outputs
    ]
