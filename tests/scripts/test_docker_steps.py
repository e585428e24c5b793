"""The Dockerfile without Docker: what it copies is what a wheel needs, and its steps are run in order."""

from pathlib import Path

import pytest

from scripts import docker_steps

ROOT = Path(__file__).resolve().parents[2]


def test_its_steps_are_run_in_order_with_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(
        "# a comment\nFROM python:3.12-slim\nARG EXTRAS=serve\nRUN apt-get install \\\n  nothing\nCOPY LICENSE /src/\n"
        'COPY sharding /src/sharding\nRUN python -c "print(1)" > /src/out\nRUN echo "$EXTRAS" >> /src/out\n'
    )
    docker_steps.run(dockerfile, tmp_path / "image")
    assert (tmp_path / "image/src/out").read_text() == "1\nserve\n"
    assert (tmp_path / "image/src/LICENSE").exists() and (tmp_path / "image/src/sharding/mesh.py").exists()
    monkeypatch.setenv("EXTRAS", "serve,cuda12")
    docker_steps.run(dockerfile, tmp_path / "another")
    assert (tmp_path / "another/src/out").read_text().endswith("serve,cuda12\n")


def test_a_step_that_fails_ends_it(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("RUN exit 3\nRUN touch /src/never\n")
    with pytest.raises(Exception, match="3"):
        docker_steps.run(tmp_path / "Dockerfile", tmp_path / "image")
    assert not (tmp_path / "image/src/never").exists()


def test_it_copies_all_that_is_installed_and_docker_is_sent_no_more() -> None:
    copied = [
        source
        for word, rest in docker_steps.instructions((ROOT / "Dockerfile").read_text())
        if word == "COPY"
        for source in rest.split()[:-1]
    ]
    assert set(copied) == {"pyproject.toml", "README.md", "LICENSE", "sharding", "convert", "moejax"}
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert set(kept) == set(copied)
