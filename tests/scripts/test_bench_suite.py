"""The commands of `make bench` are commands, and what became of each is told. They are not run here."""

import shlex
import subprocess
from pathlib import Path

import pytest

from moejax.cli.app import run
from scripts import bench_suite
from tests.messages import error_line, refuses


@pytest.mark.parametrize("arguments", bench_suite.PARTS.values(), ids=bench_suite.PARTS)
def test_every_part_is_a_command(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its flags are taken: the first thing that is wrong with it is where its report goes."""
    assert run(["bench", *shlex.split(arguments), "--report", "no/such"]) == 2
    error_line(capsys.readouterr().err, "--report no/such", "make it")


def test_both_sizes_and_every_goal_are_run() -> None:
    for model in ("186m", "742m"):
        parts = [one for one in bench_suite.PARTS.values() if f"--random {model}" in one and one.startswith("compare")]
        flags = shlex.split(parts[0])
        wanted = {"-b": "1,8,16", "--prefill-len": "512", "--num-prompts": "64"}
        assert {flag: flags[flags.index(flag) + 1] for flag in wanted} == wanted
        assert flags[flags.index("--peers") + 1] == "transformers,transformers-compiled,llama.cpp"


@pytest.mark.parametrize(("status", "wrong"), [(0, False), (1, True)])
def test_wrong_tokens_are_told_and_do_not_end_it(
    status: int, wrong: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def done(command: list[str], *, check: bool) -> subprocess.CompletedProcess[bytes]:
        asked.append(command)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(subprocess, "run", done)
    assert bench_suite.run_part("part 1 of 1", "latency -b 1", Path("r")) is wrong
    assert asked[0][1:] == ["-m", "moejax", "bench", "latency", "-b", "1", "--report", "r"]
    assert capsys.readouterr().out.startswith("part 1 of 1: moejax bench latency -b 1 --report r\npart 1 of 1 took ")


def test_a_part_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 2))
    with refuses(SystemExit, "part 2 of 6", "exit code 2"):
        bench_suite.run_part("part 2 of 6", "latency", Path("r"))
