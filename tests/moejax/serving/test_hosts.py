"""Which names a server answers to, and which pages elsewhere may ask it."""

import socket

import pytest

import moejax
from moejax.serving.errors import ApiError
from moejax.serving.hosts import AllowedHosts, allowed_hosts, host_in
from moejax.serving.settings import AppSettings
from tests.messages import refuses, says
from tests.moejax.serving.conftest import SIZES
from tests.moejax.serving.live import Live, running
from tests.moejax.serving.test_faults import error_of

OWN = socket.gethostname()


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("localhost", "localhost"),
        ("LocalHost.:8000", "localhost"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("[::1]:8000", "::1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("evil.example:1", "evil.example"),
        ("my_service:", "my_service"),
    ],
)
def test_hosts_in_headers(header: str, host: str) -> None:
    assert host_in(header) == host


NO_HOSTS = [
    "",
    "[::1",
    "[]",
    "[localhost]",
    "[::1]evil",
    "[::1]80",
    "localhost@evil",
    "me:secret@localhost",
    "localhost/evil",
    "localhost evil",
    "localhost:80:90",
    "localhost:evil",
    "localhost:99999",
    "localhost,evil",
    "fe80::1%evil",
    "..",
    "<evil>",
    "\xe9vil",
]


@pytest.mark.parametrize("header", NO_HOSTS)
def test_headers_that_name_no_host(header: str) -> None:
    """Not even where any host may be named, and nothing of them is said again."""
    for hosts in (AllowedHosts(), AllowedHosts(anything=True)):
        with pytest.raises(ApiError) as raised:
            hosts.check(header)
        assert raised.value.status == 400
        assert "evil" not in raised.value.message and "--allowed-hosts" not in raised.value.message


@pytest.mark.parametrize("hosts", [["[::1"], [""], ["me@localhost"], ["localhost", "localhost"]])
def test_malformed_hosts_over_http(live: Live, hosts: list[str]) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        lines = "".join(f"Host: {one}\r\n" for one in hosts)
        client.sendall(f"GET /health HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
        assert client.makefile("rb").readline().split()[1] == b"400"


@pytest.mark.parametrize(
    ("listens_on", "more", "taken", "refused"),
    [
        (
            "127.0.0.1",
            [],
            ["localhost:1", "127.0.0.1", "[::1]:1"],
            ["evil.example", "10.0.0.1", "127.0.0.1.evil.example"],
        ),
        ("127.0.0.2", [], ["127.0.0.2", "localhost"], ["127.0.0.3"]),
        ("localhost", [], ["localhost", "127.0.0.1"], ["localhost.evil.example"]),
        ("10.0.0.7", [], ["10.0.0.7:8000"], ["localhost", "10.0.0.8"]),
        ("0.0.0.0", [], ["10.0.0.7:8000", "[fe80::1]", "localhost", OWN], ["evil.example"]),
        ("::", [], ["10.0.0.7", "[::1]"], ["evil.example"]),
        ("127.0.0.1", ["api.example", "B.example"], ["api.example:443", "b.example", "localhost"], ["c.example"]),
        ("127.0.0.1", ["*"], ["evil.example"], []),
    ],
)
def test_what_a_server_answers_to(listens_on: str, more: list[str], taken: list[str], refused: list[str]) -> None:
    hosts = allowed_hosts(listens_on, more)
    for header in taken:
        hosts.check(header)
    for header in refused:
        with pytest.raises(ApiError) as raised:
            hosts.check(header)
        assert raised.value.status == 403
        says(raised.value.message, "--allowed-hosts")


@pytest.mark.parametrize("name", ["http://a.example", "a.example:80", "", "a b", "a.example/x"])
def test_names_that_are_none(name: str) -> None:
    with refuses(ValueError, "--allowed-hosts", repr(name)):
        allowed_hosts("127.0.0.1", [name])


@pytest.mark.parametrize("origin", ["example.com", "https://", "https://a/b", "ftp://a"])
def test_origins_that_are_none(origin: str) -> None:
    with refuses(ValueError, "--allowed-origins", repr(origin)):
        AppSettings(model_name="a", origins=(origin,))


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/metrics", "/page/page.js"])
def test_another_host_gets_nothing(live: Live, path: str) -> None:
    with live.client() as client:
        answer = client.get(path, headers={"host": "evil.example:8000"})
        assert answer.status_code == 403
        says(error_of(answer)["message"], "'evil.example'", "--allowed-hosts")
        assert client.get(path, headers={"host": "localhost"}).status_code != 403
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as old:
        old.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        assert old.recv(12) != b"HTTP/1.1 403"


ASKS = {
    "origin": "https://a.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


def test_other_pages_may_ask_behind_a_flag(model: "moejax.Model") -> None:
    origins = ("https://a.example",)
    with running(model, api_key="key", origins=origins, **SIZES) as live, live.client() as client:
        answer = client.options("/v1/chat/completions", headers=ASKS)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        assert client.options("/v1/models", headers={**ASKS, "origin": "https://b.example"}).status_code == 400
        for key, status in (("key", 200), ("wrong", 401)):
            headers = {"origin": "https://a.example", "authorization": f"Bearer {key}"}
            answer = client.get("/v1/models", headers=headers)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert client.options("/v1/models", headers={**ASKS, "host": "evil.example"}).status_code == 403


def test_without_the_flag_no_page_may_ask(live: Live) -> None:
    with live.client() as client:
        answer = client.options("/v1/chat/completions", headers=ASKS)
        assert answer.status_code == 405
        error_of(answer)
        plain = client.get("/v1/models", headers={"origin": "https://a.example"})
        assert not [name for name in plain.headers if name.startswith("access-control")]


def test_all_that_is_said_without_a_flag() -> None:
    assert AppSettings(model_name="a").hosts == AllowedHosts() == allowed_hosts("127.0.0.1", [])
