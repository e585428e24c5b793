"""The ASGI application: routes, guards, and errors in one shape."""

import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import HTTPException as FastAPIHTTPException
from fastapi.middleware.cors import CORSMiddleware
from prometheus_client import CONTENT_TYPE_LATEST

import moejax
from moejax.serving.baseline_api import router as baseline_router
from moejax.serving.baseline_process import BaselineProcess
from moejax.serving.documents import complete_document, documented
from moejax.serving.engine import REFUSALS, STOP_SECONDS, Engine
from moejax.serving.errors import ApiError, json_response
from moejax.serving.failures import FAILURES, error_of
from moejax.serving.guard import Guard, HostGuard
from moejax.serving.info import info
from moejax.serving.openai_api import router as openai_router
from moejax.serving.page_files import router as page_router
from moejax.serving.settings import AppSettings
from moejax.serving.tokens_api import router as tokens_router

_logger = logging.getLogger(__name__)


def create_app(engine: Engine, settings: AppSettings) -> FastAPI:
    """The application in front of `engine`, which is started with it and stopped when it ends."""

    baseline = BaselineProcess(settings.baseline)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await baseline.close()
        engine.stop(STOP_SECONDS)

    # Without FastAPI's pages of documentation, which load their scripts from elsewhere.
    app = FastAPI(title="moejax", version=moejax.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.engine, app.state.settings, app.state.created = engine, settings, int(time.time())
    app.state.baseline = baseline
    for router in (openai_router, baseline_router, tokens_router, page_router):
        app.include_router(router)
    app.add_api_route("/health", health, methods=["GET"], **documented(healthy=(200, 503)))
    app.add_api_route("/metrics", metrics, methods=["GET"], **documented())
    app.add_api_route("/v1/moejax/info", info, methods=["GET"], **documented(503))
    complete_document(app)
    app.add_exception_handler(ApiError, _on_api_error)
    for kind in FAILURES:
        app.add_exception_handler(kind, _on_failure)
    app.add_exception_handler(FastAPIHTTPException.__mro__[1], _on_http_error)
    app.add_exception_handler(Exception, _on_unexpected)
    app.add_middleware(Guard, settings=settings)
    if settings.origins:  # before the key is asked for: browsers send none with their question
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(HostGuard, hosts=settings.hosts)
    return app


async def health(request: Request) -> Response:
    """200 when requests are served, 503 while the model loads, when the engine has failed and when it is ending.

    While programs are still being compiled, `programs` says how many are there.
    """
    engine: Engine = request.app.state.engine
    if engine.status == "ready":
        there, all_of_them = engine.programs
        return json_response({"status": "ready", "programs": {"ready": there, "of": all_of_them}})
    return json_response({"status": engine.status, "message": REFUSALS[engine.status]}, status=503)


async def metrics(request: Request) -> Response:
    """Everything that is counted, in the format of Prometheus."""
    return Response(request.app.state.engine.metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _on_api_error(_: Request, error: Any) -> Response:
    return error.response()


async def _on_failure(_: Request, error: Any) -> Response:
    return error_of(error).response()


async def _on_http_error(request: Request, error: Any) -> Response:
    message, headers = str(error.detail), dict(error.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"  # `HostGuard` makes one the other
    if error.status_code == 404:
        path = request.url.path
        hint = "; a client's base URL ends in /v1" if f"/v1{path}" in request.app.openapi()["paths"] else ""
        message = f"this server has no path {path[:80]!r}; /openapi.json lists those it has{hint}"
    return ApiError(error.status_code, message, headers=headers).response()


async def _on_unexpected(_: Request, error: Any) -> Response:
    _logger.error("a request failed unexpectedly", exc_info=error)
    return ApiError(500, "the server failed to answer; its log says more").response()
