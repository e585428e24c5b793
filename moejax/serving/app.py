"""The ASGI application: routes, guards, and errors in one shape."""

import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import HTTPException as FastAPIHTTPException
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST

import moejax
from moejax.serving.baseline_api import router as baseline_router
from moejax.serving.baseline_process import BaselineProcess
from moejax.serving.engine import REFUSALS, Engine
from moejax.serving.errors import ApiError, json_response
from moejax.serving.guard import Guard
from moejax.serving.info import info
from moejax.serving.jobs import EngineError
from moejax.serving.openai_api import router as openai_router
from moejax.serving.page_files import router as page_router
from moejax.serving.settings import AppSettings

_logger = logging.getLogger(__name__)


def create_app(engine: Engine, settings: AppSettings) -> FastAPI:
    """The application in front of `engine`, which is started with it and stopped when it ends."""

    baseline = BaselineProcess(settings.baseline)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await baseline.close()
        engine.stop()

    # Without FastAPI's pages of documentation, which load their scripts from elsewhere.
    app = FastAPI(title="moejax", version=moejax.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.engine, app.state.settings, app.state.created = engine, settings, int(time.time())
    app.state.baseline = baseline
    for router in (openai_router, baseline_router, page_router):
        app.include_router(router)
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/metrics", metrics, methods=["GET"])
    app.add_api_route("/v1/moejax/info", info, methods=["GET"])
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(EngineError, _on_engine_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(FastAPIHTTPException.__mro__[1], _on_http_error)
    app.add_exception_handler(Exception, _on_unexpected)
    app.add_middleware(Guard, settings=settings)
    return app


async def health(request: Request) -> Response:
    """200 when requests are served, 503 while the model loads, when the engine has failed and when it is ending."""
    engine: Engine = request.app.state.engine
    if engine.status == "ready":
        return json_response({"status": "ready"})
    return json_response({"status": engine.status, "message": REFUSALS[engine.status]}, status=503)


async def metrics(request: Request) -> Response:
    """Everything that is counted, in the format of Prometheus."""
    return Response(request.app.state.engine.metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _on_api_error(_: Request, error: Any) -> Response:
    return error.response()


async def _on_engine_error(_: Request, error: Any) -> Response:
    return ApiError(503, str(error)).response()


async def _on_validation_error(request: Request, error: Any) -> Response:
    """The first thing that is wrong with a body, by the name of its field."""
    if request.method == "POST" and not _says_json(sent := request.headers.get("content-type", "")):
        got = f"got {sent[:80]!r}" if sent else "there is none"
        return ApiError(400, f"send content-type: application/json ({got}); without it no body is read").response()
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is no valid JSON: {reason} at character {where[-1]}").response()
    if where[:1] == ["prompt"]:
        message = "prompt must be a string, a list of strings, a list of token ids, or a list of such lists"
    else:
        message = f"{'.'.join(where) or 'the body'}: {first['msg']}"
    return ApiError(400, message[:300], param=where[0] if where else None).response()


def _says_json(content_type: str) -> bool:
    """Whether a body of this type is read as JSON."""
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


async def _on_http_error(_: Request, error: Any) -> Response:
    return ApiError(error.status_code, str(error.detail)).response()


async def _on_unexpected(_: Request, error: Any) -> Response:
    _logger.error("a request failed unexpectedly", exc_info=error)
    return ApiError(500, "the server failed to answer; its log says more").response()
