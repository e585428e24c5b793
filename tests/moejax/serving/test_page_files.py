"""The page's files over HTTP: what they are, what may be had without the key, and that they need nothing else."""

import asyncio
import re
from typing import Any

import pytest
from fastapi import FastAPI

from moejax.serving.errors import ApiError
from moejax.serving.guard import Guard
from moejax.serving.page_files import FOLDER, router
from moejax.serving.settings import AppSettings

NAMES = sorted(path.name for path in FOLDER.iterdir())


def get(path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what a server with a key sends for `path`, as it is, to whoever has none."""
    app = FastAPI(openapi_url=None)
    app.include_router(router)
    app.add_exception_handler(ApiError, lambda _, error: error.response())  # type: ignore[attr-defined]
    app.add_api_route("/v1/secret", lambda: "secret")
    app.add_middleware(Guard, settings=AppSettings(model_name="tiny", api_key="key"))
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
    asyncio.run(app({**scope, "headers": [], "root_path": "", "scheme": "http"}, receive, send))  # type: ignore[arg-type]
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize("name", NAMES)
def test_files_are_sent_as_they_are_under_a_strict_policy(name: str) -> None:
    status, headers, body = get(f"/page/{name}")
    assert (status, body) == (200, (FOLDER / name).read_bytes())
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_page_is_its_index() -> None:
    assert get("/")[2] == (FOLDER / "index.html").read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/secret",
        "/page",
        "/page/",
        "/page/nothing.js",
        "/page/../v1/secret",
        "/page/../page_files.py",
        "/page/%2e%2e/v1/secret",
        "//v1/secret",
        "/./v1/secret",
        "/health/../v1/secret",
        "/PAGE/../v1/secret",
    ],
)
def test_without_the_key_there_is_nothing_but_the_page(path: str) -> None:
    status, _, body = get(path)
    assert status in (401, 404)
    assert b"secret" not in body.replace(b"v1/secret", b"")


def test_page_needs_exactly_its_own_files() -> None:
    texts = {name: (FOLDER / name).read_text(encoding="utf-8") for name in NAMES}
    needed = set(re.findall(r'(?:href|src)="page/([\w.]+)"', texts["index.html"]))
    for text in texts.values():
        needed |= set(re.findall(r'from "\./([\w.]+)"', text))
    assert needed | {"index.html"} == set(NAMES)
    outside = {name: re.findall(r"(?:https?:)?//\w[\w.-]*\.\w+", text) for name, text in texts.items()}
    outside["icon.svg"].remove("http://www.w3.org")  # the name of a namespace, which nobody fetches
    assert not any(outside.values()), outside


def test_nothing_moves() -> None:
    """But the clock, which is slow for whoever asks for reduced motion."""
    for name in NAMES:
        if name.endswith(".css"):
            assert not re.search("transition|animation|keyframes|smooth", (FOLDER / name).read_text(encoding="utf-8"))
