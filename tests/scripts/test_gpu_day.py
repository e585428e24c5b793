"""A day on a GPU, walked through on a CPU, and what its page makes of results. The numbers are a GPU's business."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import gpu_page
from tests.messages import says

ROOT = Path(__file__).parents[2]
CONFIG = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
}
KERNELS = [
    *["route"] * 3,
    *["expert_ffn"] * 2,
    *("grouped layer", "grouped_gate_up", "grouped_matmul", "attend", "attend, a prompt"),
    *["project, q k v"] * 2,
    *["project, head"] * 2,
    *["add_norm"] * 3,
    "rotate_into_cache",
]


def day(out: Path, model: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    settings = {"OUT": str(out), "MODEL": str(model), "PYTHON": sys.executable}
    command = [ROOT / "scripts" / "gpu_day.sh", *flags]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)


def test_the_day_walks_through_its_parts_on_a_cpu(tmp_path: Path) -> None:
    model = tmp_path / "config.json"
    model.write_text(json.dumps(CONFIG))
    done = day(tmp_path / "out", model, "--tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.findall(r"^(\w+): done in \d+ s$", done.stdout, re.M)
    assert said == ["tests", "kernels", "latency", "peer", "page"]
    kernels = json.loads((tmp_path / "out" / "kernels.json").read_text())
    assert [row["kernel"] for row in kernels["rows"]] == KERNELS
    log = (tmp_path / "out" / "kernels.log").read_text()
    assert "interpreted: no times" in log.splitlines()[0]
    assert re.search(r"^\| 1 \| [\d.]+ \| [\d.]+ \|", log, re.M), "no row for the whole model"
    assert re.search(r"^crossover: .* MOST_TOKENS = \d+", log, re.M) and re.search(r"^\d+ s in all$", log, re.M)
    page = (tmp_path / "out" / "page.md").read_text()
    says(page, "step, batch 1", "prefill, batch 1", "not run", "transformers, generate", "rotate_into_cache")


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    done = day(tmp_path / "out", tmp_path / "nothing.json", "--nothing")
    assert done.returncode == 2 and "usage" in done.stderr
    script = (ROOT / "scripts" / "gpu_day.sh").read_text()
    begin, end = script.index("failed=0"), script.index('rm -f "$OUT"')
    parts = (
        f"OUT={tmp_path}\n{script[begin:end]}\npart one 9 false\npart two 1 sleep 9\npart three 9 true\nexit $failed"
    )
    run = subprocess.run(["bash", "-uo", "pipefail", "-c", parts], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    says(run.stdout, "one: FAILED with 1, see one.log", "two: STOPPED after its 1 s", "three: done in")


def test_the_parts_take_at_most_nine_minutes() -> None:
    script = (ROOT / "scripts" / "gpu_day.sh").read_text()
    assert sum(map(int, re.findall(r"^part \w+ (\d+) ", script, re.M))) <= 9 * 60


def results(layer: float, step: float) -> dict[str, Any]:
    """Of one H200: a layer of 4,096 tokens in so many seconds, a step at batch 1, and transformers'."""
    row = {"tokens": 4096, "seconds": layer, "bytes": 3e9, "flops": 2.9e12, "xla_seconds": None, "error": 1e-3}
    rates = {"bytes": 4e12, "flops": 7e14}
    percentiles = {"50": 63 * step}
    timed = {"batch_size": 1, "input_len": 4096, "output_len": 64, "decode": {"percentiles": percentiles}}
    timed |= {"prefill": {"percentiles": {"50": 0.19}}, "counted": {"decode_step": {"bytes": 25.6e9}}}
    peers = [
        {"form": "generate", "batch_size": 1, "step_seconds": 0.1, "prefill_seconds": 0.4},
        {"form": "grouped_mm", "batch_size": 1, "step_seconds": 0.03, "prefill_seconds": 0.4},
        {"form": "batched_mm", "batch_size": 1, "failed": "out of memory: 9 GB"},
    ]
    rows = [{"kernel": "grouped layer", **row}, {"kernel": "expert_ffn", **row, "seconds": 2 * layer}]
    return {
        "kernels": {"device": "NVIDIA H200", "jax": "0.11.2", "rates": rates, "rows": rows},
        "latency": {"latency": [timed]},
        "peer": {"rows": peers},
    }


def printed(folder: Path, found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
    for name, value in found.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    assert gpu_page.main([str(folder)]) == 0
    return capsys.readouterr().out.splitlines()


def test_predictions_and_goals_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = printed(tmp_path, results(layer=4e-3, step=7e-3), capsys)
    (layer,) = (line for line in good if line.startswith("| MoE layer, tokens: 4,096 |"))
    cells = [cell.strip() for cell in layer.split("|")[1:-1]]
    assert cells[3] == "4.000" and cells[5] == "yes" and 0.75 < float(cells[1]) / 4 < 1.25
    says("\n".join(good), "| MoE layer, tokens: 4,096, ms | 3.6 | 4 | NO |", "copy bandwidth | 75% | 91% | yes |")
    says("\n".join(good), "times transformers | 3 | 4.29 | yes |")
    assert any("out of memory: 9 GB" in line for line in good)
    fast = "\n".join(printed(tmp_path, results(layer=3.5e-3, step=7e-3), capsys))
    says(fast, "| MoE layer, tokens: 4,096, ms | 3.6 | 3.5 | yes |")
    bad = "\n".join(printed(tmp_path, results(layer=9e-3, step=30e-3), capsys))
    says(bad, "| MoE layer, tokens: 4,096, ms | 3.6 | 9 | NO |", "copy bandwidth | 75% | 21% | NO |", "| 1 | NO |")
    assert bad.count("| NO |") > 4


def test_what_did_not_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = "\n".join(printed(tmp_path, {"kernels": results(1e-3, 1e-3)["kernels"]}, capsys))
    says(page, "not run", "moejax's did not run", "transformers' did not run")
    unknown = results(1e-3, 1e-3)["kernels"] | {"device": "NVIDIA Z9"}
    says("\n".join(printed(tmp_path, {"kernels": unknown}, capsys)), "NVIDIA Z9", "nothing is predicted")


def test_a_page_of_a_cpu_or_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_page.main([str(tmp_path)]) == 2
    says(capsys.readouterr().err, "kernels.json", "gpu_day.sh")
    (tmp_path / "kernels.json").write_text(json.dumps(results(1e-3, 1e-3)["kernels"] | {"device": "cpu"}))
    assert gpu_page.main([str(tmp_path), "--docs"]) == 2
    says(capsys.readouterr().err, "CPU", "left alone")
    assert not gpu_page.PAGE.exists()
