"""`moejax mesh compare` and `moejax mesh show`: what is printed, how fast, and what is refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moejax import compare_meshes
from moejax.cli import console
from moejax.families.kv_cache import cache_elements_per_token
from moejax.families.table import named_configs, parameters_of
from moejax.moe.split import DISPATCHES
from moejax.planning.ranking import SAME
from tests.messages import error_line, says
from tests.moejax.cli.conftest import Call

ROOT = Path(__file__).resolve().parents[3]
COMPARE = ("mesh", "compare", "--model", "mixtral-8x7b")
EIGHT = (*COMPARE, "--devices", "8", "--hardware", "h100-sxm", "--software", "ideal")
SHOW = ("mesh", "show", "--model", "mixtral-8x7b")

MISTAKES: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (
        ("mesh", "compare", "--model", "mixtral-9x7b", "--devices", "8", "--hardware", "h200"),
        ("'mixtral-9x7b'", "mixtral-8x7b, mixtral-8x22b, 186m, 742m and demo", "config.json"),
    ),
    (
        ("mesh", "show", "--model", "mistralai/Mixtral-8x22B-v0.1", "--mesh", "tensor=8"),
        ("mistralai/Mixtral-8x22B-v0.1", "HF_HUB_OFFLINE", "'mixtral-8x22b'"),
    ),
    (
        (*COMPARE, "--devices", "8", "--hardware", "h100"),
        (
            "'h100'",
            "a100-80gb, b200, cpu, h100-sxm, h200, l40s, rtx-pro-6000, tpu-v5e, tpu-v5p, tpu-v6e, tpu7x, v100-32gb",
            "'h100-sxm'",
        ),
    ),
    ((*COMPARE, "--devices", "1", "--hardware", "h200", "--software", "vlm"), ("'vlm'", "ideal", "'vllm'")),
    ((*COMPARE, "--devices", "1", "--hardware", "cpu", "--software", "vllm"), ("cpu", "h200", "--software ideal")),
    ((*COMPARE, "--devices", "1", "--hardware", "h200", "--skew", "even"), ("--skew", "power-law:1.01", "'even'")),
    ((*COMPARE, "--devices", "1", "--hardware", "h200", "--times", "measured"), ("--times measured", "vllm")),
    ((*COMPARE, "--devices", "0", "--hardware", "h200"), ("--devices", "1", "got '0'")),
    ((*COMPARE, "--devices", "-4", "--hardware", "h200"), ("--devices", "1", "got '-4'")),
    ((*COMPARE, "--devices", "x", "--hardware", "h200"), ("--devices", "got 'x'")),
    (
        (*COMPARE, "--devices", "4", "--hardware", "v100-32gb"),
        ("v100-32gb", "bfloat16", "--dtype float16 or float32"),
    ),
    ((*EIGHT, "--dtype", "int8"), ("--dtype", "bfloat16", "float16", "float32", "auto", "'int8'")),
    ((*EIGHT, "-b", "1,0"), ("--batch-size", "1 to 100,000", "got '1,0'")),
    ((*EIGHT, "-b", "many"), ("--batch-size", "1 to 100,000", "got 'many'")),
    ((*EIGHT, "-b", "100001"), ("--batch-size", "1 to 100,000", "got '100001'")),
    (
        (*EIGHT, "--input-len", "512", "--context", "100"),
        ("--context 100", "--input-len 512"),
    ),
    ((*EIGHT, "--context", "-1"), ("--context", "0", "got -1")),
    ((*EIGHT, "--context", "40000"), ("--context 40000", "32768 positions")),
    (
        (*EIGHT, "--objective", "speed"),
        ("'speed'", "latency, throughput, ttft, memory"),
    ),
    (
        (*EIGHT, "--dispatch", "gathr"),
        ("'gathr'", f"auto, {', '.join(DISPATCHES)}", "'gather'"),
    ),
    ((*EIGHT, "--usable-fraction", "1.5"), ("--usable-fraction", "0", "1", "got 1.5")),
    ((*EIGHT, "--format", "xml"), ("--format", "table, json or csv", "got 'xml'")),
    ((*EIGHT, "--csv", "--json"), ("--json", "--csv")),
    ((*EIGHT, "--efficiency", "1.5"), ("--efficiency", "bandwidth", "0", "1", "got 1.5")),
    ((*EIGHT, "--efficiency", "vllm-h200"), ("--efficiency", "0.6", "0.8,0.5", "gpt-fast-a100", "'vllm-h100'")),
    (
        (*COMPARE, "--devices", "1", "--hardware", "h200", "--efficiency", "0.6"),
        ("--efficiency 0.6", "roofline", "--software moejax", "h200", "--software ideal"),
    ),
    ((*EIGHT, "--json", "--format", "table"), ("--json", "--format table")),
    ((*EIGHT, "--plot", "a.gif"), ("--plot", ".png, .svg or .pdf", "got 'a.gif'")),
    (
        (*EIGHT, "--json", "--plot", "/proc/x.png"),
        ("--plot /proc/x.png", "No such file"),
    ),
    (
        (*EIGHT, "--expert-load", "nowhere.json"),
        ("nowhere.json", "moejax decode CHECKPOINT --prompt TEXT --save-expert-load FILE"),
    ),
    ((*COMPARE, "--devices", "8"), ("moejax mesh compare", "--hardware NAME", "moejax mesh compare --help")),
    ((*EIGHT, "--gpus", "8"), ("--gpus", "--devices")),
    (
        (*EIGHT, "-n", "8"),
        ("-n", "--context", "--output-len"),
    ),
    (
        (*EIGHT, "--tensor-parallel-size", "8"),
        ("--tensor-parallel-size", "moejax mesh show --mesh"),
    ),
    (
        (*SHOW, "--mesh", "expert=9"),
        ("experts is 8", "expert = 9", "data=1,expert=9,tensor=1", "expert=8"),
    ),
    (
        (*SHOW, "--mesh", "auto"),
        ("--mesh auto", "mesh show", "--mesh expert=4,tensor=2", "moejax mesh compare"),
    ),
    (
        (*SHOW, "--mesh", "data=1000000000"),
        ("data", "999,999,999", "got 1000000000"),
    ),
    (
        (*SHOW, "--mesh", "expert=4,tensor=2", "--devices", "4"),
        ("data=1,expert=4,tensor=2", "8 devices", "--devices 4"),
    ),
    (
        ("mesh", "compar"),
        ("'compar'", "'compare'", "compare, show and calibrate"),
    ),
]


@pytest.mark.parametrize(("arguments", "facts"), MISTAKES, ids=[" ".join(mistake[0]) for mistake in MISTAKES])
def test_a_mistake_is_one_line(call: Call, arguments: tuple[str, ...], facts: tuple[str, ...]) -> None:
    outcome = call(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    error_line(outcome.err, *facts)


def test_a_file_of_weights_in_the_place_of_a_model_is_named(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "model.Q4_K_M.gguf"
    path.write_bytes(b"GGUF")
    error_line(call("mesh", "show", "--model", path, "--mesh", "expert=2").err, path, "GGUF", "hf download")


def test_a_hardware_file_with_an_impossible_number_is_refused(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    shipped = (ROOT / "moejax/planning/devices/h200.toml").read_text()
    path.write_text(re.sub(r"(?m)^bandwidth = .*", "bandwidth = 0", shipped, count=1))

    outcome = call(*COMPARE, "--devices", "2", "--hardware", path)
    error_line(outcome.err, path, "bandwidth", "above 0", "got 0")
    assert outcome.status == 2


def test_the_load_of_another_model_is_refused(call: Call, tmp_path: Path) -> None:
    fields = dict(model="demo", num_layers=1, num_experts=2, experts_per_token=1, tokens=3, counts=[[1, 2]])
    path = tmp_path / "load.json"
    path.write_text(json.dumps(fields))
    outcome = call(*EIGHT, "--expert-load", path)
    assert outcome.status == 2
    error_line(outcome.err, "demo", "1 layers, 2 experts, 1 per token", "32 layers")
    path.write_text(json.dumps(fields | {"counts": [[1, 1]]}))
    outcome = call(*EIGHT, "--expert-load", path)
    assert outcome.status == 2
    error_line(outcome.err, "layer 0", "2", "1", "expected 3")


def lines_of(text: str) -> list[list[str]]:
    """The words of every line of a table of splits: d, e and t, numbers or a dispatch, a bar, numbers."""
    return [line.split() for line in text.splitlines() if re.match(r" ?\d+ +\d+ +\d+ ", line)]


@pytest.mark.parametrize("batch", ["8", "1,8,32"])
@pytest.mark.parametrize("width", [80, 120])
def test_the_table_reads_at_80_columns_and_without_colour(
    call: Call, monkeypatch: pytest.MonkeyPatch, batch: str, width: int
) -> None:
    monkeypatch.setattr(console, "PIPED_WIDTH", width)
    outcome = call(*EIGHT, "-b", batch)
    assert (outcome.status, outcome.err) == (0, "")
    assert max(map(len, outcome.out.splitlines())) <= width and "\x1b" not in outcome.out and "…" not in outcome.out
    rows = lines_of(outcome.out)
    shown = compare_meshes("mixtral-8x7b", 8, "h100-sxm", batch_size=1, software="ideal")
    assert len(rows) == sum(row.fits for row in shown) * len(batch.split(","))
    assert [row.built for row in shown if row.fits].count(False) == 1
    assert all(any(re.fullmatch("w+k*l*x*", word) for word in row) for row in rows)  # the bar
    assert rows[0][:3] == ["1", "1", "8"]
    text = " ".join(outcome.out.split())
    assert "mixtral-8x7b on 8 x NVIDIA H100 SXM, 80 GB" in text and "step*" in text
    assert "out: data=8 does not fit: " in text and " GB over" in text
    for objective in ("latency", "throughput", "ttft", "memory"):
        assert f"best {objective}: " in text
    says(text, "w weights")
    assert "tensor=8, per device: 11.7 GB of weights, " in text and "65 all-reduce over tensor" in text
    says(text, "1,024", "moejax serve")
    says(text, "not built")
    assert "Links on which gather beats replicated over expert=8 (here 450 GB/s) batch decode step prefill" in text


@pytest.mark.parametrize(
    ("objective", "heading", "place"), [("latency", "step*", -6), ("throughput", "peak*", -1), ("ttft", "TTFT*", -3)]
)
def test_the_column_that_ranks_is_shown_and_marked(call: Call, objective: str, heading: str, place: int) -> None:
    out = call(*EIGHT, "-b", "4", "--objective", objective).out
    assert heading in out and out.count("*") == 2  # there, and where it is explained
    rows = [row for row in lines_of(out) if "built" not in row]
    values = [float(row[place].replace(",", "")) for row in rows]
    ordered = sorted(values, reverse=objective == "throughput")
    alike = sum(abs(value - ordered[0]) <= SAME * ordered[0] for value in values)  # of these the simplest is first
    assert values[alike:] == ordered[alike:] and sorted(values[:alike]) == sorted(ordered[:alike])
    assert len(set(values)) > 5 and alike < 5


def test_numbers_are_of_the_split_that_ranks_first(call: Call) -> None:
    """Of the one with the least memory, which is not the fastest."""
    arguments = ("mesh", "compare", "--model", "demo", "--devices", "4", "--hardware", "h100-sxm", "-b", "4")
    firsts = {}
    for objective in ("latency", "memory"):
        text = call(*arguments, "--objective", objective).out
        (best,) = re.findall(rf"^best {objective}: +(.*)$", text, re.M)
        (firsts[objective],) = re.findall(r"^in numbers: +(.*?), per device", text, re.M)
        assert best.startswith(f"{firsts[objective]} "), text
    assert firsts["latency"] != firsts["memory"]


def test_a_terminal_too_narrow_for_all_columns_goes_without_some(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for width, there, spared in ((60, "read", "imb"), (40, "tok/s", "read")):
        monkeypatch.setattr(console, "PIPED_WIDTH", width)
        table, _, _ = call(*EIGHT, "-b", "1").out.partition("best latency")
        assert max(map(len, table.splitlines())) <= width and "…" not in table
        assert there in table.split() and spared not in table.split()


def test_a_small_model_is_shown_in_small_units(call: Call) -> None:
    out = call(
        "mesh",
        "compare",
        "--model",
        "demo",
        "--devices",
        "2",
        "--hardware",
        "h100-sxm",
        "-b",
        "1",
        "--software",
        "ideal",
    ).out
    assert re.search(r"MB +read +imb +us +tok/s +us +most +tok/s\n", out)
    shown = compare_meshes("demo", 2, "h100-sxm", batch_size=1, software="ideal")
    assert len(lines_of(out)) == sum(row.fits for row in shown) and not re.search(r"\b0\.0+\b", out)


def test_figures_beyond_any_device_do_not_break_the_table(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And a title may have any characters: those that steer a terminal are shown as what they are."""
    monkeypatch.setattr(console, "PIPED_WIDTH", 80)
    for bandwidth in ("1e-12", "1e24"):
        path = tmp_path / "extreme.toml"
        path.write_text(
            f'title = "a \\u001b[31mred\\u0007\\n one"\nmemory_bytes = {9 * 10**23}\nbandwidth = {bandwidth}\n'
            f"devices_per_node = 8\nmatrix_rate.bfloat16 = {bandwidth}\nlink = {{bandwidth = 1e-12, latency = 1e3}}\n"
        )
        outcome = call(*COMPARE, "--devices", "8", "--hardware", path, "-b", "1,1024")
        assert (outcome.status, outcome.err) == (0, "")
        assert r"8 x a \x1b[31mred\x07\n one" in outcome.out and "\x1b" not in outcome.out
        assert max(map(len, outcome.out.splitlines())) <= 80 and "…" not in outcome.out
        shown = compare_meshes("mixtral-8x7b", 8, path, batch_size=1)
        assert len(lines_of(outcome.out)) == 2 * sum(row.fits for row in shown)


def test_a_model_that_fits_nowhere_is_told_with_what_would_help(call: Call) -> None:
    one = (*COMPARE, "--devices", "1", "--hardware", "h100-sxm", "-b", "1,8")
    outcome = call(*one)
    assert (outcome.status, outcome.err) == (1, "")
    text = " ".join(outcome.out.split())
    says(text, "93.8 GB", "77.0 GB", "16.8 GB")
    says(text, "16.8 GB", "--devices 2", "--hardware", "h200")
    outcome = call(*one, "--json")
    found = json.loads(outcome.out)
    assert (outcome.status, found["fits"], found["fits_with"]) == (1, False, ["--devices 2", "--hardware h200"])


def test_a_batch_that_fits_nowhere_is_told_beside_one_that_fits(call: Call) -> None:
    outcome = call(*COMPARE, "--devices", "2", "--hardware", "h100-sxm", "-b", "1,4096")
    assert outcome.status == 0
    text = " ".join(outcome.out.split())
    says(text, "4,096", "moejax serve", "1,024")
    lacking = r"nothing fits: \S+ comes nearest and lacks [\d.,]+ GB on each device; up to \d+ sequences fit"
    assert re.search(lacking, text)


def test_json_is_what_python_returns(call: Call) -> None:
    found = json.loads(call(*EIGHT, "--format", "json", "-b", "4").out)
    assert found == json.loads(call(*EIGHT, "--json", "-b", "4").out)
    rows = compare_meshes("mixtral-8x7b", 8, "h100-sxm", batch_size=4, software="ideal")
    assert [row["label"] for row in found["rows"]] == [row.label for row in rows]
    assert [row["batch_size"] for row in found["rows"]] == [row.batch_size for row in rows]
    assert found["rows"][0]["decode"]["seconds"] == rows[0].decode.seconds  # type: ignore[union-attr]
    assert found["winners"]["4"]["latency"]["split"] == "tensor=8"
    assert found["rows"][0]["best_for"]["latency"] == rows[0].best_for["latency"]
    assert found["hardware"]["sources"]["bandwidth"].startswith("3.35 TB/s")


@pytest.mark.parametrize(
    ("asked", "answer", "most"),
    [
        (("--devices", "64"), "best latency", 4_500_000),
        (("--devices", "1-16", "--ttft", "1s", "--tpot", "20ms"), "fewest", 9_000_000),
    ],
)
def test_a_comparison_of_many_devices_is_fast_and_needs_no_jax(asked: tuple[str, ...], answer: str, most: int) -> None:
    """By its calls of functions, imports included: 2.9 and 5.9 million, about 1.5 and 2 seconds of a server's core."""
    code = (
        "import cProfile, pstats, sys\n"
        "profile = cProfile.Profile()\n"
        "profile.enable()\n"
        "import moejax.cli\n"
        f"sys.argv = {['moejax', *COMPARE, *asked, '--hardware', 'h100-sxm', '--batch-size', '1,8,32']}\n"
        "try: moejax.cli.main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "profile.disable()\n"
        "print(pstats.Stats(profile).total_calls, file=sys.stderr)\n"
        "print(*sorted({'jax', 'jaxlib', 'flax', 'matplotlib', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    calls, loaded = done.stderr.splitlines()
    assert loaded == ""
    assert len(re.findall(rf"^{answer}:", done.stdout, re.M)) == (3 if answer == "best latency" else 4)  # and of all
    assert int(calls) < most


def test_show_lists_every_array_and_its_bytes(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*SHOW, "--mesh", "expert=4,tensor=2", "--devices", "8", "--batch-size", "16", "--dispatch", "gather")
    found = json.loads(call(*arguments, "--json").out)
    config = named_configs()["mixtral-8x7b"]
    params = [one for one in found["arrays"] if not one["path"].startswith("cache")]
    assert sum(one["bytes_total"] for one in params) == 2 * parameters_of(config).total
    assert sum(one["bytes_per_device"] for one in params) == found["weight_bytes_per_device"]
    cache = sum(one["bytes_total"] for one in found["arrays"] if one["path"].startswith("cache"))
    assert cache == 16 * 2048 * 2 * cache_elements_per_token(config) and found["cache_rows"] == 16
    monkeypatch.setattr(console, "PIPED_WIDTH", 80)
    out = call(*arguments).out
    assert max(map(len, out.splitlines())) <= 80
    text = " ".join(out.split())
    says(text, "data=1,expert=4,tensor=2", "dispatch gather")
    assert re.search(r"attention\.q q_heads 4096/tensor, .* x 32 expert", text)
    assert f"per device: weights {found['weight_bytes_per_device'] / 1e9:.1f} GB, cache of 16 sequences" in text
    assert "padded" not in text


@pytest.mark.parametrize(
    ("mesh", "batch", "facts"),
    [
        ("tensor=2", 3, ("--batch-size 3", "4")),
        (
            "data=2,expert=2",
            1,
            ("--batch-size 1", "2", "data"),
        ),
        ("data=3", 4, ("--batch-size 4", "6", "data")),
    ],
)
def test_show_says_when_a_batch_is_padded(call: Call, mesh: str, batch: int, facts: tuple[str, ...]) -> None:
    out = call("mesh", "show", "--model", "demo", "--mesh", mesh, "--batch-size", batch).out
    says(" ".join(out.split()), "padded", *facts)
    assert "no batch" not in out and " 0.00" not in out


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


def test_csv_goes_to_stdout_alone(call: Call) -> None:
    done = call(*EIGHT, "--csv", "-b", "1", "--skew", "zipf:1.0", "--efficiency", "vllm-h100")
    header, *lines = done.out.splitlines()
    assert header.startswith("devices,data,expert,tensor,dispatch") and "step [s]" in header
    assert len(lines) == len(compare_meshes("mixtral-8x7b", 8, "h100-sxm", batch_size=1)) and not done.err


def test_the_table_says_how_tokens_choose_and_what_is_reached(call: Call) -> None:
    out = call(*EIGHT, "-b", "1", "--skew", "dirichlet:0.5", "--efficiency", "0.8,0.5").out
    says(out, "times", "roofline", "0.8", "bandwidth", "0.5", "matrix rate", "experts", "dirichlet:0.5")
    found = json.loads(call(*EIGHT, "-b", "1", "--skew", "dirichlet:0.5", "--efficiency", "0.6", "--json").out)
    assert found["routing"] == {"skew": "dirichlet:0.5", "expert_load": None}
    assert found["hardware"]["efficiency"] == {"bandwidth": 0.6, "matrix_rate": 0.6}
