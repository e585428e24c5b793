"""`moejax info` of the machine: what a report of a fault needs, and nothing that should not be in one."""

import json
import sys
from pathlib import Path

import jax
import pytest

from moejax.ops.table import BACKENDS
from tests.moejax.cli.conftest import Call


def test_it_has_what_a_report_needs(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("XLA_FLAGS", "--xla_a=1"), ("HF_TOKEN", "hf_secret"), ("JAX_COORDINATOR_API_KEY", "secret")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "moejax/xla").mkdir(parents=True)
    (tmp_path / "moejax/xla/one-cache").write_bytes(b"12345")
    outcome = call("info", "--json")
    assert (outcome.status, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert found["devices"] == [{"platform": "cpu", "kind": "cpu", "count": 8}]
    python = sys.version.partition(" ")[0]
    assert (found["versions"]["jax"], found["versions"]["python"]) == (jax.__version__, python)
    assert set(found["backends"]) == set(BACKENDS) and found["backends"]["dense"] is None
    assert "NVIDIA" in found["backends"]["pallas"] and found["expert_backend"] == "native"
    assert found["caches"]["xla"] == {"folder": str(tmp_path / "moejax/xla"), "files": 1, "bytes": 5}
    assert found["caches"]["native"]["files"] == 0 and not (tmp_path / "moejax/native").exists()
    assert found["settings"]["XLA_FLAGS"] == "--xla_a=1"
    assert "secret" not in outcome.out


def test_it_is_a_page(call: Call) -> None:
    lines = call("info").out.splitlines()
    assert any(line.split()[:2] == ["devices", "8"] for line in lines)
    assert any(line.split() == ["version", "jax", jax.__version__] for line in lines)
