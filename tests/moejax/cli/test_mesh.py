"""`moejax mesh compare` and `moejax mesh show`: what is printed, how fast, and what is refused."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from moejax import compare_meshes
from moejax.cli import console
from moejax.config import NAMED_CONFIGS
from tests.moejax.cli.conftest import Call

ROOT = Path(__file__).resolve().parents[3]
COMPARE = ("mesh", "compare", "--model", "mixtral-8x7b")
EIGHT = (*COMPARE, "--devices", "8", "--hardware", "h100-sxm")
SHOW = ("mesh", "show", "--model", "mixtral-8x7b")

MISTAKES: list[tuple[tuple[str, ...], str]] = [
    (
        ("mesh", "compare", "--model", "mixtral-9x7b", "--devices", "8", "--hardware", "h200"),
        "unknown model 'mixtral-9x7b': the known ones are mixtral-8x7b, mixtral-8x22b and demo, or give the path of a "
        "config.json or of a checkpoint's folder; did you mean 'mixtral-8x7b'?",
    ),
    (
        (*COMPARE, "--devices", "8", "--hardware", "h100"),
        "unknown hardware 'h100': the known names are a100-80gb, cpu, h100-sxm, h200, l40s, v100-32gb, or the path of "
        "a .toml file; did you mean 'h100-sxm'?",
    ),
    ((*COMPARE, "--devices", "0", "--hardware", "h200"), "--devices must be a whole number of at least 1, got 0"),
    ((*COMPARE, "--devices", "-4", "--hardware", "h200"), "--devices must be a whole number of at least 1, got -4"),
    ((*COMPARE, "--devices", "x", "--hardware", "h200"), "--devices must be a whole number, got 'x'"),
    (
        (*COMPARE, "--devices", "4", "--hardware", "v100-32gb"),
        "hardware v100-32gb (NVIDIA V100 SXM2, 32 GB) does not compute in bfloat16; use --dtype float16 or float32",
    ),
    ((*EIGHT, "--dtype", "int8"), "unknown dtype 'int8': use bfloat16, float16, float32 or auto"),
    ((*EIGHT, "-b", "1,0"), "--batch-size must be whole numbers of at least 1, as in 8 or 1,8,32, got '1,0'"),
    ((*EIGHT, "-b", "many"), "--batch-size must be whole numbers of at least 1, as in 8 or 1,8,32, got 'many'"),
    (
        (*EIGHT, "--input-len", "512", "--context", "100"),
        "--context 100 is shorter than --input-len 512: the cache holds the prompt too; make it longer, or 0 for the "
        "bound that weights alone set",
    ),
    ((*EIGHT, "--context", "40000"), "--context 40000 is more than the model's 32768 positions; use a smaller one"),
    (
        (*EIGHT, "--objective", "speed"),
        "unknown objective 'speed': the known ones are latency, throughput, ttft, memory",
    ),
    (
        (*EIGHT, "--dispatch", "gathr"),
        "unknown dispatch 'gathr': the known ones are auto, replicated, gather, all_to_all; did you mean 'gather'?",
    ),
    ((*EIGHT, "--usable-fraction", "1.5"), "--usable-fraction must be above 0 and at most 1, got 1.5"),
    ((*EIGHT, "--format", "xml"), "--format must be table or json, got 'xml'"),
    ((*EIGHT, "--plot", "a.gif"), "--plot must be a .png, .svg or .pdf file, got 'a.gif'"),
    (
        (*EIGHT, "--expert-load", "nowhere.json"),
        "nowhere.json: there is no such file; record one with: moejax decode CHECKPOINT --prompt TEXT "
        "--save-expert-load FILE (or give demo, the bundled checkpoint's)",
    ),
    ((*COMPARE, "--devices", "8"), "moejax mesh compare needs --hardware NAME; see moejax mesh compare --help"),
    ((*EIGHT, "--gpus", "8"), "moejax mesh compare has no --gpus; use --devices"),
    (
        (*EIGHT, "--tensor-parallel-size", "8"),
        "moejax mesh compare has no --tensor-parallel-size: every split is compared; moejax mesh show --mesh shows one "
        "of them",
    ),
    (
        (*SHOW, "--mesh", "expert=3"),
        "the number of experts is 8, which does not divide over mesh axis expert = 3 of data=1,expert=3,tensor=1; use "
        "expert=2 or another divisor of 8",
    ),
    (
        (*SHOW, "--mesh", "expert=4,tensor=2", "--devices", "4"),
        "mesh data=1,expert=4,tensor=2 has 8 devices, not --devices 4; change one of them",
    ),
    (
        ("mesh", "compar"),
        "no such command 'compar'; did you mean 'compare'? The commands are compare, show and calibrate",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(mistake[0]) for mistake in MISTAKES])
def test_a_mistake_is_one_line(call: Call, arguments: tuple[str, ...], message: str) -> None:
    outcome = call(*arguments)
    assert (outcome.status, outcome.out, outcome.err) == (2, "", f"error: {message}\n")


def test_a_hardware_file_with_an_impossible_number_is_refused(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    shipped = (ROOT / "moejax/planning/devices/h200.toml").read_text()
    path.write_text(shipped.replace("bandwidth = 4.8e12", "bandwidth = 0"))

    outcome = call(*COMPARE, "--devices", "2", "--hardware", path)
    assert outcome.err == f"error: {path}: bandwidth must be a number above 0, got 0; correct it there\n"
    assert outcome.status == 2


def test_the_load_of_another_model_is_refused(call: Call, tmp_path: Path) -> None:
    fields = dict(model="demo", num_layers=1, num_experts=2, experts_per_token=1, tokens=3, counts=[[1, 2]])
    path = tmp_path / "load.json"
    path.write_text(json.dumps(fields))
    outcome = call(*EIGHT, "--expert-load", path)
    assert outcome.status == 2 and outcome.err.startswith(
        "error: the expert load was recorded from demo (1 layers, 2 experts, 1 per token), but this model has 32 layers"
    )
    path.write_text(json.dumps(fields | {"counts": [[1, 1]]}))
    outcome = call(*EIGHT, "--expert-load", path)
    assert outcome.status == 2 and "counts of layer 0 add up to 2, the largest is 1; expected 3" in outcome.err


@pytest.mark.parametrize("batch", ["8", "1,8,32"])
def test_the_table_reads_at_80_columns_and_without_colour(
    call: Call, monkeypatch: pytest.MonkeyPatch, batch: str
) -> None:
    monkeypatch.setattr(console, "PIPED_WIDTH", 80)
    outcome = call(*EIGHT, "-b", batch)
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80 and "\x1b" not in outcome.out and "…" not in outcome.out
    rows = [line.split() for line in lines if re.match(r"[1248]  [1248]  [1248]  ", line)]
    assert len(rows) == 22 * len(batch.split(","))  # 21 that fit, and one that is not built
    assert all(re.fullmatch("w+k*l*", row[-4]) for row in rows)  # the bar
    assert rows[0][:3] == ["1", "1", "8"]
    text = " ".join(outcome.out.split())
    assert "no: data=8: does not fit: " in text and " GB over" in text
    for objective in ("latency", "throughput", "ttft", "memory"):
        assert f"best {objective}: " in text
    assert "step, in ms: w weights" in text
    assert "tensor=8, per device: 11.68 GB weights, " in text and "65 all-reduce over tensor" in text


def test_json_is_what_python_returns(call: Call) -> None:
    found = json.loads(call(*EIGHT, "--format", "json", "-b", "4").out)
    rows = compare_meshes("mixtral-8x7b", 8, "h100-sxm", batch_size=4)
    assert [row["label"] for row in found["rows"]] == [row.label for row in rows]
    assert found["rows"][0]["decode"]["seconds"] == rows[0].decode.total  # type: ignore[union-attr]
    assert found["winners"]["4"]["latency"]["split"] == "tensor=8"
    assert found["hardware"]["sources"]["bandwidth"].startswith("3.35 TB/s")


def processor_seconds(code: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A Python process that runs `code`, and the seconds of the processor that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_comparison_of_64_devices_is_fast_and_needs_no_jax() -> None:
    """Two seconds: of the processor, which on a machine with nothing else to do is all the time that it takes.

    A machine that takes more than 0.2 of them to import numpy, rich and typer may take more here in proportion.
    """
    code = (
        "import sys, moejax.cli\n"
        f"sys.argv = {['moejax', *COMPARE, '--devices', '64', '--hardware', 'h100-sxm', '--batch-size', '1,8,32']}\n"
        "try: moejax.cli.main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(*sorted({'jax', 'jaxlib', 'flax', 'matplotlib', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    (_, importing), (done, seconds) = map(processor_seconds, ("import numpy, rich.table, typer", code))
    assert done.stderr == "\n"
    assert done.stdout.count("best latency") == 3
    assert seconds < 2 * max(1, importing / 0.2)


def test_show_lists_every_array_and_its_bytes(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*SHOW, "--mesh", "expert=4,tensor=2", "--devices", "8", "--batch-size", "16", "--dispatch", "gather")
    found = json.loads(call(*arguments, "--json").out)
    config = NAMED_CONFIGS["mixtral-8x7b"]
    params = [one for one in found["arrays"] if not one["path"].startswith("cache")]
    assert sum(one["bytes_total"] for one in params) == 2 * config.num_parameters
    assert sum(one["bytes_per_device"] for one in params) == found["weight_bytes_per_device"]
    cache = sum(one["bytes_total"] for one in found["arrays"] if one["path"].startswith("cache"))
    assert cache == 16 * 2048 * 2 * config.cache_elements_per_token and found["cache_rows"] == 16
    monkeypatch.setattr(console, "PIPED_WIDTH", 80)
    out = call(*arguments).out
    assert max(map(len, out.splitlines())) <= 80
    text = " ".join(out.split())
    assert "data=1,expert=4,tensor=2, dispatch gather" in text
    assert re.search(r"attention\.q q_heads 4096/tensor, .* x 32 expert", text)
    assert f"per device: weights {found['weight_bytes_per_device'] / 1e9:.2f} GB, cache of 16 rows" in text


def test_the_script_is_the_same() -> None:
    arguments = [*EIGHT[1:], "--format", "json", "-b", "1"]
    run = {"capture_output": True, "text": True, "cwd": ROOT, "check": True}
    script = subprocess.run([sys.executable, "scripts/mesh_config.py", *arguments], **run)
    assert json.loads(script.stdout)["winners"]["1"]["latency"]["split"] == "tensor=8"


def test_a_model_with_few_positions_is_compared_at_all_of_them(call: Call) -> None:
    found = json.loads(call("mesh", "compare", "--model", "demo", "--devices", "2", "--hardware", "cpu", "-b", "1",
                            "--format", "json").out)  # fmt: skip
    assert {(row["input_len"], row["context"]) for row in found["rows"]} == {(512, 1024)}
    shown = json.loads(call("mesh", "show", "--model", "demo", "--mesh", "tensor=2", "--json").out)
    assert shown["arrays"][-1]["shape"][2] == 1024


def test_without_a_command_it_is_the_help(call: Call) -> None:
    outcome = call("mesh")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out == call("mesh", "--help").out
