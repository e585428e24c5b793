"""A server with a certificate of its own, made by openssl."""

import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

import moejax
from moejax.serving.settings import Tls
from tests.messages import refuses
from tests.moejax.serving.live import WAIT_SECONDS, running


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = str(folder / "key.pem"), str(folder / "cert.pem")
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*new, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return Tls(keyfile=key, certfile=certificate)


def test_answers_are_encrypted_with_the_certificate(model: "moejax.Model", tls: Tls) -> None:
    with running(model, tls=tls, max_batch=2) as live:
        assert live.url.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=tls.certfile)
        body = {"prompt": [5, 6], "max_tokens": 2}
        answer = httpx.post(f"{live.url}/v1/completions", json=body, verify=trusted, timeout=WAIT_SECONDS)
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 2
        with pytest.raises(httpx.TransportError):
            httpx.get(live.url.replace("https", "http") + "/health", timeout=WAIT_SECONDS)


def test_files_that_are_no_pair_are_refused(tls: Tls, tmp_path: Path) -> None:
    with refuses(ValueError, tmp_path / "none", "--ssl-keyfile", "--ssl-certfile"):
        Tls(keyfile=str(tmp_path / "none"), certfile=tls.certfile)
    with refuses(ValueError, tls.keyfile, "PEM"):
        Tls(keyfile=tls.keyfile, certfile=tls.keyfile)
