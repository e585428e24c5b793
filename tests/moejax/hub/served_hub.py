"""A hub on 127.0.0.1: what huggingface_hub asks for, answered from files in memory.

https://huggingface.co/docs/hub/api; the headers are those of `resolve`: X-Repo-Commit, ETag, X-Linked-Size, and
X-Error-Code where something is not there or not allowed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT, OLD = "c" * 40, "0" * 40
BRANCHES = {"main": COMMIT, COMMIT: COMMIT, "v1": OLD, OLD: OLD}
TOKEN = "hf_secret"


@dataclass(kw_only=True)
class Hub:
    """What it has, and what it was asked for.

    models: files by name, of each model; files of the revision v1 begin with "v1/".
    gated: models whose files are for those who have TOKEN.
    api: what all of its API answers, where it is no hub.
    damaged: file -> what is sent for it, under the ETag of what it should be.
    cuts: file -> how many bytes of it are sent before the connection breaks, each used once.
    requests: method and path of each, in their order; ranges: of those that asked for a part of a file.
    """

    models: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    api: bytes | None = None
    damaged: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def sent(self) -> list[str]:
        """The names of the files that were asked for."""
        return [path.rpartition("/")[2] for method, path in self.requests if method == "GET" and "/resolve/" in path]

    def files(self, repo: str, commit: str) -> dict[str, bytes]:
        old = {name.removeprefix("v1/"): raw for name, raw in self.models[repo].items() if name.startswith("v1/")}
        new = {name: raw for name, raw in self.models[repo].items() if not name.startswith("v1/")}
        return new if commit == COMMIT else old


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answers on a free port of 127.0.0.1."""

    class Handler(_Handler):
        asked = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.port = server.server_address[1]
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(monkeypatch: pytest.MonkeyPatch, address: str, cache: str, *, offline: bool = False) -> None:
    """Makes `address` the hub of this process, and `cache` its folder."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.delenv("HF_TOKEN", raising=False)


class _Handler(BaseHTTPRequestHandler):
    asked: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.asked.requests.append((self.command, path))
        parts = path.strip("/").split("/")
        if parts[0] == "api" and self.asked.api is not None:
            return self._answer(200, self.asked.api)
        if parts[:2] == ["api", "models"]:
            repo, what = "/".join(parts[2:4]), (*parts[4:], "revision", "main")
            return self._api(repo, what[0], what[1])
        if parts[2:3] == ["resolve"]:
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        self._answer(404, b"")

    def _api(self, repo: str, what: str, revision: str) -> None:
        if (commit := self._commit(repo, revision)) is None:
            return
        files = self.asked.files(repo, commit)
        if what == "tree":
            listed = [
                {"type": "file", "path": name, "size": len(raw), "oid": _etag(raw)} for name, raw in files.items()
            ]
            return self._answer(200, json.dumps(listed).encode())
        siblings = [{"rfilename": name, "size": len(raw), "blobId": _etag(raw)} for name, raw in files.items()]
        self._answer(200, json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode())

    def _file(self, repo: str, revision: str, name: str) -> None:
        if (commit := self._commit(repo, revision)) is None:
            return
        if repo in self.asked.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, b"", {"X-Error-Code": "GatedRepo"})
        raw = self.asked.files(repo, commit).get(name)
        known = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if raw is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", **known})
        etag, raw = _etag(raw), self.asked.damaged.get(name, raw)
        known |= {"ETag": f'"{etag}"', "X-Linked-Size": str(len(raw))}
        begin = 0
        if asked := self.headers.get("Range"):
            self.asked.ranges.append(asked)
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            known["Content-Range"] = f"bytes {begin}-{len(raw) - 1}/{len(raw)}"
        cuts = self.asked.cuts.get(name, []) if self.command == "GET" else []
        self._answer(206 if begin else 200, raw[begin:], known, cut=cuts.pop(0) if cuts else None)

    def _commit(self, repo: str, revision: str) -> str | None:
        if repo not in self.asked.models:
            self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        if revision not in BRANCHES:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return BRANCHES[revision]

    def _answer(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


def _etag(raw: bytes) -> str:
    return hashlib.sha1(raw).hexdigest()
