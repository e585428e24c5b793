"""The commands of `make bench` are commands, and what became of each is told. They are not run here."""

import shlex
import subprocess
from pathlib import Path

import pytest

from moejax.cli.app import run
from scripts import bench_suite
from scripts.bench_report import DOCS


@pytest.mark.parametrize("arguments", bench_suite.PARTS.values(), ids=bench_suite.PARTS)
def test_every_part_is_a_command(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its flags are taken: the first thing that is wrong with it is a model that is given besides."""
    assert run(["bench", *shlex.split(arguments), "--json", "demo"]) == 2
    assert capsys.readouterr().err.startswith("error: give a CHECKPOINT or --random MODEL, got both; ")


def test_both_sizes_and_every_goal_are_run() -> None:
    for model in ("186m", "742m"):
        parts = [one for one in bench_suite.PARTS.values() if f"--random {model}" in one and one.startswith("compare")]
        flags = shlex.split(parts[0])
        wanted = {"-b": "1,8,16", "--prefill-len": "512", "--num-prompts": "64"}
        assert {flag: flags[flags.index(flag) + 1] for flag in wanted} == wanted
        assert flags[flags.index("--peers") + 1] == "transformers,transformers-compiled,llama.cpp"


@pytest.mark.parametrize(("status", "wrong"), [(0, False), (1, True)])
def test_a_part_has_tables_and_a_report_and_wrong_tokens_do_not_end_it(
    status: int,
    wrong: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []
    printed = (DOCS / "benchmarks" / "5_strategies_742m" / "report.json").read_text(encoding="utf-8")

    def done(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, status, stdout=printed)

    monkeypatch.setattr(subprocess, "run", done)
    assert bench_suite.run_part("part 1 of 1", "compare -b 1", tmp_path / "r") is wrong
    assert asked[0][1:] == ["-m", "moejax", "bench", "compare", "-b", "1", "--json"]
    out = capsys.readouterr().out
    assert out.startswith("part 1 of 1: moejax bench compare -b 1 --json\n## Parallelism\n")
    assert "part 1 of 1 took " in out
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"report.json", "report.md"}


@pytest.mark.parametrize("status", [1, 2])
def test_a_part_that_fails_ends_it(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that ends with 1, as wrong tokens do, and has printed nothing."""
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, status, stdout=""))
    with pytest.raises(SystemExit, match=f"part 2 of 6 failed with exit code {status}"):
        bench_suite.run_part("part 2 of 6", "latency", Path("r"))
