"""What `/openapi.json` says beside what FastAPI finds out: bodies, which are read by hand, and what statuses happen."""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict

from moejax.serving.openai_requests import ChatRequest, CompletionRequest
from moejax.serving.tokens_requests import DetokenizeRequest, TokenizeRequest

_BODIES = (CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest)
_SCHEMAS = "#/components/schemas/"

WHEN = {
    400: "The request is malformed, or asks for what this model or this server cannot do.",
    401: "The API key is wrong or missing.",
    403: "The header Host names another server.",
    404: "There is no such model or path.",
    413: "The request is too large.",
    415: "The body is packed in a way that is not supported.",
    429: "Too many requests wait.",
    500: "The server failed to answer; other requests go on.",
    503: "The model loads, the server ends, or the engine has failed.",
}
ANSWERING = (400, 404, 413, 415, 429, 500, 503)  # what a route does that has the model answer a body
_ALWAYS = (401, 403, 413, 500)  # what happens before a route is reached, or is no route's intention


class ErrorFacts(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every error's body."""

    error: ErrorFacts


class Health(BaseModel):
    """How the server is."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["loading", "ready", "draining", "dead", "stopped"]
    message: str | None = None


def documented(*statuses: int, healthy: tuple[int, ...] = (), body: type[BaseModel] | None = None) -> dict[str, Any]:
    """Arguments of a route: its statuses beside 200, and the form of its body.

    healthy: statuses whose body is a `Health`.
    """
    responses: dict[int, dict[str, Any]] = {
        status: {"model": ErrorAnswer, "description": WHEN[status]} for status in sorted({*statuses, *_ALWAYS})
    }
    responses |= {one: {"model": Health, "description": WHEN.get(one, "Requests are served.")} for one in healthy}
    if body is None:
        return {"responses": responses}
    content = {"application/json": {"schema": {"$ref": _SCHEMAS + body.__name__}}}
    return {"responses": responses, "openapi_extra": {"requestBody": {"required": True, "content": content}}}


def complete_document(app: FastAPI) -> None:
    """Has `app` put the forms of bodies into its document, which is made once."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schemas = made["components"]["schemas"]
            for kind in _BODIES:
                schema = kind.model_json_schema(ref_template=_SCHEMAS + "{model}")
                schemas |= schema.pop("$defs", {})
                schemas[kind.__name__] = schema
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
