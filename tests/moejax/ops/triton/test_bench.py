"""What the benchmark refuses and says; tests/scripts/test_gpu_day.py walks through its rows."""

import pytest

from scripts import bench_kernels, kernel_timing
from tests.messages import refuses, says


def test_without_a_gpu_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench_kernels.py"])
    with refuses(SystemExit, "NVIDIA GPU", "8.0", "--tiny"):
        bench_kernels.main()


def test_a_wrong_result_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    report, cost = kernel_timing.KernelReport(rates=kernel_timing.Rates(1.0, 1.0)), kernel_timing.Cost(1.0, 1.0)
    for error in (1.0, float("nan")):
        with refuses(SystemExit, "route", "3 tokens"):
            report.row("route", 3, 1.0, cost, None, error)
    assert not report.rows


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
