"""`moejax serve` as a process: it starts, says what it keeps, ends cleanly, and refuses in one line."""

import dataclasses
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import moejax
from tests.messages import error_line, says
from tests.moejax.cli.conftest import Call
from tests.moejax.decoding.tiny_checkpoint import Tiny

SHORT = ("--max-seq-len", "256", "--prefill-chunk", "32", "--dtype", "float32")
SMALL = (*SHORT, "--max-batch", "2")
START_SECONDS = 240


@contextmanager
def served(folder: Path, port: int, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command and its address, when `/health` says 200; killed at the end if it still runs.

    Port 0 is a free one, which the first line names.
    """
    command = [sys.executable, "-m", "moejax", "serve", str(folder), "--port", str(port), *SMALL, *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = f"http://127.0.0.1:{port}"
        if port == 0:
            (url,) = re.findall(r"(http://[\d.:]+)/", process.stderr.readline())
        until = time.monotonic() + START_SECONDS
        statuses = set()
        while 200 not in statuses:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            try:
                statuses.add(httpx.get(f"{url}/health").status_code)
            except httpx.TransportError:  # it listens before it answers
                pass
            time.sleep(0.05)
        assert statuses <= {200, 503}  # 503 where it was asked before it had loaded
        yield process, url
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def waiting(url: str) -> float:
    """Requests in the queue, as the server says."""
    text = httpx.get(f"{url}/metrics", timeout=START_SECONDS).text
    return float(re.findall(r"^vllm:num_requests_waiting\{.*\} (.*)$", text, re.M)[0])


def test_sigterm_under_load_finishes_what_runs(tiny: Tiny, tiny_folder: Path) -> None:
    """Two rows run and are finished, the third waits and is told; the exit code is 0 and nothing is left in between."""
    streams: dict[int, str] = {}

    def read(url: str, number: int) -> None:
        body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=START_SECONDS) as answer:
            for part in answer.iter_text():
                streams[number] = streams.get(number, "") + part

    with served(tiny_folder, 0) as (process, url):
        threads = [threading.Thread(target=read, args=(url, number)) for number in range(3)]
        for thread in threads:
            thread.start()
        while len(streams) < 2 or (len(streams) < 3 and not waiting(url)):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(START_SECONDS)
        err = process.communicate(timeout=START_SECONDS)[1]
        assert process.returncode == 0
    ends = sorted("[DONE]" in text for text in streams.values())
    assert ends == [False, True, True] or ends == [True] * 3  # where the first were done before the third came
    for text in streams.values():
        *_, last = (line for line in text.splitlines() if line)
        assert last == "data: [DONE]" or "shutting down" in json.loads(last[6:])["error"]["message"]
    says(err, "2 sequences", "256 tokens")
    assert f"ready: open {url}/\n" in err
    assert re.search(r"^stopped: [23] requests finished, [01] ", err, re.M)
    assert "Traceback" not in err


def test_second_ctrl_c_and_other_names_of_flags(tiny: Tiny, tiny_folder: Path, port: int) -> None:
    names = ("--max-num-seqs", "2", "--max-model-len", "256", "--served-model-name", "other", "--quiet")
    environment = {"MOEJAX_API_KEY": "abc"}
    os.environ.update(environment)
    try:
        with served(tiny_folder, port, *names) as (process, url):
            assert httpx.get(f"{url}/v1/models").status_code == 401
            (entry,) = httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer abc"}).json()["data"]
            assert (entry["id"], entry["max_model_len"]) == ("other", 256)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=START_SECONDS)
            assert (process.returncode, err) == (0, "")
    finally:
        del os.environ["MOEJAX_API_KEY"]


def test_port_that_is_taken(call: Call, tiny: Tiny, tiny_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = call("serve", tiny_folder, "--port", str(port))
    assert outcome.status == 2
    error_line(outcome.err, "127.0.0.1", port, "Address already in use", "--port")


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        (("--max-batch", "0"), ("--max-batch", "1", "1024", "got 0")),
        (("--max-queue", "0"), ("--max-queue", "1", "got 0")),
        (("--prefill-chunk", "100"), ("--prefill-chunk", "16", "8192", "got 100")),
        (("--port", "65536"), ("--port", "0", "65535", "got 65536")),
        (("--host", "no host"), ("--host", "no host")),
        (("--api-key", ""), ("--api-key", "ASCII")),
        (("--max-seq-len", "5000"), ("--max-seq-len", "2", "1024")),
        (("--mesh", "tensor=5"), ("tensor = 5",)),
        (("--dispatch", "gather"), ("add --mesh",)),
        (("--max-request-bytes", "9"), ("--max-request-bytes", "1024", "got 9")),
        (("--shutdown-seconds", "-1"), ("--shutdown-seconds", "0")),
        (("--write-seconds", "0"), ("--write-seconds", "0", "86400", "got 0.0")),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    call: Call, tiny: Tiny, tiny_folder: Path, flags: tuple[str, ...], facts: tuple[str, ...]
) -> None:
    port = () if "--port" in flags else ("--port", "0")
    outcome = call("serve", tiny_folder, *port, *flags)
    assert outcome.status == 2
    error_line(outcome.err, *facts)


@pytest.fixture
def signals() -> Iterator[None]:
    """Puts back what a server in this process does with signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_model_that_cannot_be_loaded(
    call: Call, tiny: Tiny, tiny_folder: Path, signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it loads, /health says so with 503; then the command ends, with the reason in one line."""
    from moejax.serving import server

    urls: list[str] = []
    health: list[httpx.Response] = []
    url = server.url

    def noted(host: str, port: int, *, tls: bool) -> str:
        urls.append(url(host, port, tls=tls))
        return urls[0]

    def load(*_: object, **__: object) -> None:
        health.append(httpx.get(f"{urls[0]}health", timeout=START_SECONDS))
        raise ValueError("the weights of layer 3 are damaged")

    monkeypatch.setattr(server, "url", noted)
    monkeypatch.setattr(moejax, "load", load)
    outcome = call("serve", tiny_folder, "--port", "0", *SMALL)
    (answer,) = health
    assert answer.status_code == 503
    assert answer.json()["status"] == "loading"
    says(answer.json()["message"], "/health", "200")
    assert outcome.status == 2
    loading, error = outcome.err.splitlines()
    says(loading, tiny_folder, urls[0], "/health", "200")
    assert error == "error: the weights of layer 3 are damaged"  # as load() says it


def test_cache_that_does_not_fit(
    call: Call, tiny: Tiny, tiny_folder: Path, signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moejax.serving import shapes

    free = dataclasses.replace(shapes.device_memory(), free_bytes=120_000)
    monkeypatch.setattr(shapes, "device_memory", lambda devices: free)
    outcome = call("serve", tiny_folder, "--port", "0", "--quiet", *SHORT, "--max-batch", "8")
    assert outcome.status == 2
    error_line(outcome.err, "--max-batch 8", "--max-seq-len 256", "--max-batch 3", "--max-seq-len")


def test_every_flag_is_documented(call: Call) -> None:
    flags = re.findall(r"--[a-z][a-z-]+", call("serve", "--help").out)
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    assert len(flags) > 20
    assert {flag for flag in flags if f"`{flag}`" not in page} == {"--help"}


def test_missing_extra(call: Call, tiny: Tiny, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    outcome = call("serve", tiny_folder)
    assert outcome.status == 2
    error_line(outcome.err, "uvicorn", "pip install 'moejax[serve]'")
