"""What a report says of given numbers: losses are as visible as wins, wrong tokens are called wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from moejax.bench.machine import describe_run
from moejax.bench.standings import ratio_text
from scripts import bench_report, report_plots
from scripts.bench_report import PUBLISHED, markdown, read_result, write_report
from scripts.report_tables import compare_table, table
from tests.messages import says


def samples(rate: float, ratio: float) -> dict[str, Any]:
    return {
        "seconds": [1 / rate] * 2,
        "tokens_per_second": [rate, rate],
        "median_tokens_per_second": rate,
        "ratios": [ratio, ratio],
        "median_ratio": ratio,
    }


def result(contender: str, rate: float, ratio: float, tokens: str = "same tokens") -> dict[str, Any]:
    both = {"prefill": samples(10 * rate, ratio), "decode": samples(rate, ratio)}
    return {"contender": contender, "tokens": tokens, "worst_gap": 0.0, "mean_gap": 0.0, "warmup_seconds": 1.0, **both}


def comparison() -> dict[str, Any]:
    works = [
        {
            "batch_size": batch,
            "input_len": 128,
            "output_len": 64,
            "name": f"b{batch}",
            "results": [
                result("moejax", 100.0 * batch, 1.0),
                result("faster", 125.0 * batch, 0.8),
                result("slower", 50.0 * batch, 2.0, tokens="WRONG"),
            ],
        }
        for batch in (1, 8)
    ]
    systems = [
        {"name": name, "how": "so", "serve_how": "", "load_seconds": 2.0, "warmup_seconds": 30.0, "failed": None}
        for name in ("moejax", "faster", "slower")
    ]
    requests = [
        {"contender": "moejax", "how": "", "tokens": "same tokens", **samples(7.0, 1.0)},
        {"contender": "slower", "how": "", "tokens": "WRONG", **samples(3.5, 2.0)},
    ]
    systems[2]["failed"] = "slower ended"
    compared = {
        "rounds": 2,
        "threads": 2,
        "contenders": systems,
        "works": works,
        "throughput": {"num_requests": 64, "rounds": 1, "results": requests},
        "not_installed": {"vllm": "not installed (vllm): pip install vllm"},
    }
    model = {"name": "m", "parameters": 10**8, "active_parameters": 10**7, "dtype": "bfloat16"}
    return {**describe_run(["bench", "compare", "a b"]), "model": model, "compare": compared}


def test_a_report_has_page_samples_and_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = comparison()
    (tmp_path / "result.json").write_text(json.dumps(given))
    monkeypatch.setattr("sys.argv", ["bench_report", str(tmp_path / "result.json"), str(tmp_path / "new")])
    bench_report.main()
    write_report(tmp_path / "new", given)  # which is written over
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == given
    page = (tmp_path / "new" / "report.md").read_text()
    assert "- command: `moejax bench compare 'a b'`" in page
    says(page, "vllm", "pip install vllm")
    says(page, "slower: so", "2.0 s", "30.0 s", "FAILED: slower ended")
    says(page, "2 rounds", "1 of")
    assert "NOT MEASURED BY US" in page
    names = ["latency_p128_n64.png", "throughput_p128_n64.png", "ratio.png", "ratio_prefill.png"]
    assert [plot.file for plot in report_plots.plan_plots(given)] == names
    for name in names:
        assert f"({name})" in page
        drawn = (tmp_path / "new" / name).read_bytes()
        assert drawn.startswith(b"\x89PNG") and report_plots.digest(given).encode() in drawn


def test_a_narrow_loss_does_not_look_like_a_draw() -> None:
    assert [ratio_text(ratio) for ratio in (0.994, 0.9963, 0.99996, 1.0, 1.004)] == [
        *("0.99", "0.996", "0.99996", "1.00", "1.00")
    ]
    given = comparison()
    given["compare"]["works"][0]["results"][1]["decode"] = samples(125.0, 0.9963)
    assert "**0.996**" in compare_table(given["compare"])


def test_one_round_is_one() -> None:
    given = comparison()
    given["compare"]["rounds"] = 1
    says(markdown(given), "1 round", "1 of", "interleaved")


def test_losses_are_bold_and_wrong_tokens_named() -> None:
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in compare_table(comparison()["compare"]).splitlines()
    ]
    decode = {row[1]: row for row in rows if row[0] == "tg64 @ d128, batch 8"}
    assert decode["moejax"][2:5] == ["800.0", "800.0 to 800.0", ""]
    assert decode["faster"][4] == "**0.80**"
    assert (decode["slower"][4], decode["slower"][6]) == ("2.00", "WRONG")
    served = [[row[1], row[2], row[6]] for row in rows if row[0] == "64 ragged requests"]
    assert served == [["moejax", "7.0", "same tokens"], ["slower", "3.5", "WRONG"]]


def test_without_matplotlib_the_install_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"matplotlib.* pip install 'moejax\[plot\]'"):
        write_report(tmp_path, comparison())


@pytest.mark.parametrize("text", ["{", "[]", '{"duration": 1}'])
def test_what_is_no_result_of_a_benchmark(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match="result.json is no .*--json"):
        read_result(tmp_path / "result.json")


def test_where_a_report_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.json").write_text(json.dumps(comparison()))
    monkeypatch.setattr("sys.argv", ["bench_report", str(tmp_path / "result.json"), str(tmp_path / "no" / "such")])
    with pytest.raises(SystemExit, match="2"):
        bench_report.main()
    assert f"No such file or directory: '{tmp_path / 'no' / 'such'}'" in capsys.readouterr().err


def test_every_published_figure_has_its_source() -> None:
    rows = [line.split("|")[1:-1] for line in PUBLISHED.read_text(encoding="utf-8").splitlines() if line[:1] == "|"][2:]
    assert {row[0].split()[0] for row in rows} >= {"gpt-fast", "TensorRT-LLM", "vLLM"}
    assert all(row[-1].strip().startswith("https://") for row in rows)


def test_tables_are_aligned() -> None:
    lines = table(("a", "long"), [("x", "1"), ("yyyy", "22")]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| ---- | ---: |"
