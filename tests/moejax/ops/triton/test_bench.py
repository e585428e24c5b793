"""The benchmark walks all its rows. Its numbers are a GPU's business."""

import re

import pytest

from scripts import bench_kernels, kernel_timing
from tests.messages import refuses, says


def test_tiny_run_prints_every_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench_kernels.py", "--tiny"])
    bench_kernels.main()
    out = capsys.readouterr().out
    assert "interpreted: no times" in out.splitlines()[0]
    names = [line.split("|")[1].strip() for line in out.splitlines() if re.match(r"\| [a-z_ ]+ \| \d", line)]
    assert names == [*["route"] * 3, *["expert_ffn"] * 2, "grouped layer", "grouped_gate_up", "grouped_matmul"]
    assert re.search(r"^crossover: .* MOST_TOKENS = \d+", out, re.M) and re.search(r"^\d+ s in all$", out, re.M)
    assert re.search(r"^\| 1 \| [\d.]+ \| [\d.]+ \|", out, re.M), "no row for the whole model"


def test_without_a_gpu_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench_kernels.py"])
    with refuses(SystemExit, "NVIDIA GPU", "8.0", "--tiny"):
        bench_kernels.main()


def test_a_wrong_result_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rates, cost = kernel_timing.Rates(1.0, 1.0), kernel_timing.Cost(1.0, 1.0)
    for error in (1.0, float("nan")):
        with refuses(SystemExit, "route", "3 tokens"):
            kernel_timing.print_row("route", 3, 1.0, cost, rates, None, error)


@pytest.mark.parametrize(
    ("few", "many", "facts"),
    [
        ({8: 1.0, 16: 2.0, 64: 3.0}, {16: 3.0, 64: 4.0}, ("64 tokens", "keep MOST_TOKENS = 64")),
        ({8: 1.0, 16: 2.0, 64: 5.0}, {16: 3.0, 64: 4.0}, ("64 tokens", "set MOST_TOKENS = 16")),
        ({8: 1.0, 16: 9.0, 64: 3.0}, {16: 3.0, 64: 4.0}, ("16 tokens", "set MOST_TOKENS = 8")),
    ],
)
def test_the_crossover_says_what_to_set(few: dict[int, float], many: dict[int, float], facts: tuple[str, ...]) -> None:
    says(bench_kernels.crossover(few, many), *facts)
