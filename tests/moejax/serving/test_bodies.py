"""Bodies cost what they are worth: they are counted before they are built, and the first mistake ends the checks."""

import gzip
import json
import threading
import tracemalloc
from typing import Any

import httpx
import pytest

from moejax.serving import bodies
from moejax.serving.bodies import parse
from moejax.serving.errors import ApiError
from moejax.serving.openai_requests import ChatRequest, CompletionRequest, GenerationRequest
from tests.messages import says
from tests.moejax.serving.live import Live
from tests.moejax.serving.test_faults import error_of

MOST = {"prompt": 8, "tokens": 320}
MIB = 1 << 20
JSON = {"content-type": "application/json"}


def body(**fields: str) -> bytes:
    """A JSON object of values that are JSON already."""
    return ("{" + ",".join(f'"{name}":{value}' for name, value in {"prompt": '"a"', **fields}.items()) + "}").encode()


def many(item: str, count: int) -> str:
    return f"[{','.join([item] * count)}]"


@pytest.mark.parametrize(
    ("content", "kind", "facts"),
    [
        (body(prompt=many("[]", 1_390_000)), CompletionRequest, ("1,390,002", "50,000")),
        (body(messages=many("{}", 1_390_000)), ChatRequest, ("1,390,002", "50,000")),
        (body(prompt=many("1", 2_000_000)), CompletionRequest, ("320", "2000000 tokens")),
        (body(prompt=many("1.5", 1_000_000)), CompletionRequest, ("1000000 prompts", "8")),
        (body(prompt=f"[{many('1', 2_000_000)}]"), CompletionRequest, ("320", "2000000 tokens")),
        (body(messages=many("1", 2_000_000)), ChatRequest, ("320", "2000000 messages")),
        (body(messages=f'[{{"role":"user","content":{many("1", 2_000_000)}}}]'), ChatRequest, ("2000000 parts",)),
        (body(stop=many("1", 2_000_000)), CompletionRequest, ("stop",)),
        (body(stop_token_ids=many('""', 1_300_000)), CompletionRequest, ("stop_token_ids",)),
        (body(**{f"f{at}": "1" for at in range(300_000)}), CompletionRequest, ("300,001 keys", "1,024")),
        (
            body(stream_options=json.dumps(dict.fromkeys(map(str, range(300_000)), 1))),
            CompletionRequest,
            ("300,000 keys",),
        ),
        (
            body(logit_bias=json.dumps(dict.fromkeys(map(str, range(300_000)), ""))),
            CompletionRequest,
            ("300,000 keys",),
        ),
        (b"[" * 4_000_000, CompletionRequest, ("4,000,000",)),
        (b"[" * 40_000, CompletionRequest, ("nested",)),
        (b'{"prompt":"' + b'\\"' * 2_000_000, CompletionRequest, ("JSON",)),
        (b'{"prompt":"' + b"[{" * 1_000_000 + b'\\"' * 1_000_000, CompletionRequest, ("JSON",)),
        (b'{"prompt": ' + b"9" * 100_000 + b"}", CompletionRequest, ("digits",)),
    ],
    ids=lambda value: value[:24].decode() if isinstance(value, bytes) else "",
)
def test_what_is_wrong_throughout_costs_little(
    content: bytes, kind: type[GenerationRequest], facts: tuple[str, ...]
) -> None:
    """What Python allocates is counted; pydantic's own errors would be hundreds of bytes for each item."""
    tracemalloc.start()
    try:
        with pytest.raises(ApiError) as raised:
            parse(content, kind, MOST)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * MIB
    assert raised.value.status == 400
    assert len(raised.value.message) < 400
    says(raised.value.message, *facts)


def test_one_mistake_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many items are wrong, as few of them are described as of one wrong item."""
    found: list[int] = []
    monkeypatch.setattr(
        bodies, "wrong_field", lambda error, kind: found.append(error.error_count()) or ApiError(400, "")
    )
    for count in (1, 300):
        for fields in ({"stop": many("1", count)}, {"prompt": f'["a",{many("1", count)[1:-1]}]'}):
            with pytest.raises(ApiError):
                parse(body(**fields), CompletionRequest, {"prompt": 1000, "tokens": 1000})
    assert found[:2] == found[2:]


def test_text_may_hold_as_many_brackets_as_it_likes() -> None:
    text = '[{"' * 300_000
    assert parse(json.dumps({"prompt": text}).encode(), CompletionRequest, MOST).prompt == text


def test_large_bodies_are_parsed_beside_the_event_loop(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    real = bodies.parse

    def watched(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return real(*args)

    monkeypatch.setattr(bodies, "parse", watched)
    with live.client() as client:
        for prompt in ("a", "a" * 100_000):
            client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1})
        packed = gzip.compress(b'{"prompt": "a", "max_tokens": 1}')
        client.post("/v1/completions", content=packed, headers={**JSON, "content-encoding": "gzip"})
    loop, large, unpacked = threads
    assert large.startswith("moejax-bodies") and unpacked.startswith("moejax-bodies")
    assert not loop.startswith("moejax-bodies")


def test_others_are_served_while_a_body_is_parsed(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()
    real = bodies._loads

    def slow(raw: bytes) -> Any:
        if len(raw) > bodies.INLINE_BYTES:
            begun.set()
            assert may_end.wait(60)
        return real(raw)

    monkeypatch.setattr(bodies, "_loads", slow)
    statuses: list[int] = []
    large = {"prompt": "a" * 100_000}
    thread = threading.Thread(
        target=lambda: statuses.append(httpx.post(f"{live.url}/v1/completions", json=large).status_code)
    )
    thread.start()
    try:
        assert begun.wait(60)
        with live.client() as client:
            assert client.get("/health").status_code == 200
            assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
        assert statuses == []
    finally:
        may_end.set()
        thread.join()
    assert statuses == [400]


@pytest.mark.parametrize(
    ("content", "headers", "status", "facts"),
    [
        (b'{"prompt": "\xff\xfe"}', {}, 400, ("UTF-8", "0xff", "12")),
        ('{"prompt": "é"}'.encode("latin-1"), {}, 400, ("UTF-8", "0xe9")),
        ('{"prompt": "a"}'.encode("utf-16"), {}, 400, ("UTF-8",)),
        (gzip.compress(b'{"prompt": "a"}'), {}, 400, ("UTF-8", "0x8b")),
        (b'{"prompt": "a"}', {"content-encoding": "gzip"}, 400, ("gzip",)),
        (gzip.compress(b'{"prompt": "a"}')[:-9], {"content-encoding": "gzip"}, 400, ("gzip", "ends")),
        (gzip.compress(b"[" * (2 * MIB)), {"content-encoding": "gzip"}, 413, (str(MIB), "--max-request-bytes")),
        (
            gzip.compress(b'{"prompt": "a"}') + gzip.compress(b" "),
            {"content-encoding": "gzip"},
            400,
            ("21 bytes", "one"),
        ),
        (gzip.compress(b'{"prompt": "a"}') + b"more", {"content-encoding": "gzip"}, 400, ("4 bytes", "gzip", "one")),
        (b'{"prompt": "a"}', {"content-encoding": "br"}, 415, ("'br'", "gzip")),
    ],
    ids=["no UTF-8", "Latin-1", "UTF-16", "unsaid gzip", "no gzip", "half", "bomb", "two", "more", "brotli"],
)
def test_bodies_in_other_forms(
    live: Live, content: bytes, headers: dict[str, str], status: int, facts: tuple[str, ...]
) -> None:
    with live.client() as client:
        answer = client.post("/v1/completions", content=content, headers={**JSON, **headers})
    assert answer.status_code == status
    assert answer.headers.get("accept-encoding") == ("gzip" if status == 415 else None)
    says(error_of(answer)["message"], *facts)


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
@pytest.mark.parametrize("encoding", ["gzip", "X-GZIP"])
def test_gzip_is_unpacked(live: Live, prefix: bytes, encoding: str) -> None:
    asked = prefix + '{"prompt": "é", "max_tokens": 2, "temperature": 0}'.encode()
    with live.client() as client:
        plain = client.post("/v1/completions", content=asked, headers=JSON)
        packed = client.post(
            "/v1/completions", content=gzip.compress(asked), headers={**JSON, "content-encoding": encoding}
        )
    assert plain.status_code == packed.status_code == 200
    assert plain.json()["choices"] == packed.json()["choices"]
