"""`moejax bench` as a user runs it, on tiny models: numbers that cannot be known are checked for their form."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moejax._convert import OrbaxFolder
from moejax.bench.peers import PEERS
from moejax.bench.standings import Standing, SystemsPlan
from moejax.cli.bench_compare_plan import hf_folder
from moejax.cli.bench_options import SourceFlags
from moejax.cli.bench_runs import source_name
from scripts.bench_report import write_report
from tests.messages import error_line, refuses, says
from tests.moejax.cli.conftest import Call
from tests.moejax.decoding.tiny_checkpoint import Tiny

BASELINE = Path(__file__).resolve().parents[3] / "docs" / "bench_baseline.json"
NO_BATCH = json.dumps(
    {
        "environment": {},
        "tolerance": 1,
        "cases": [{**json.loads(BASELINE.read_text())["cases"][0], "batch_size": 0}],
    }
)
SMALL = ("-p", "16", "-n", "3", "--dtype", "float32")


@pytest.fixture(autouse=True)
def small_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays that are measured in milliseconds: here nothing depends on the rates."""
    monkeypatch.setattr("moejax.bench.roofline.ARRAY_BYTES", {"cpu": 2**20})
    monkeypatch.setattr("moejax.bench.roofline.MATRIX_SIDE", {"cpu": 64})


def test_latency_prints_a_row_for_each_test(call: Call, tiny: Tiny, tiny_folder: Path) -> None:
    outcome = call("bench", "latency", tiny_folder, "-b", "1,2", *SMALL, "-r", "2", "--quiet")
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].startswith("machine: ") and lines[2].startswith("measured: copy ")
    rows = [line.split()[:2] for line in lines if " pp16 " in line or " tg3 @ d16 " in line]
    assert rows == [["1", "pp16"], ["1", "tg3"], ["2", "pp16"], ["2", "tg3"]]
    assert outcome.out.count(" ± ") == 4


def test_latency_prints_every_sample_in_vllms_keys(call: Call, tiny: Tiny, tiny_folder: Path, tmp_path: Path) -> None:
    flags = ("-r", "3", "--prefill-len", "24", "--json", "--quiet")
    outcome = call("bench", "latency", tiny_folder, *SMALL, *flags)
    assert outcome.status == 0, outcome.err
    result = json.loads(outcome.out)
    one, alone = result["latency"]
    assert (alone["batch_size"], alone["input_len"], alone["decode"]) == (1, 24, None)
    assert len(one["latencies"]) == len(one["prefill"]["seconds"]) == len(one["decode"]["seconds"]) == 3
    assert one["avg_latency"] == pytest.approx(sum(one["latencies"]) / 3)
    assert one["percentiles"]["50"] == sorted(one["latencies"])[1]
    step = one["counted"]["decode_step"]
    assert step["bytes"] == step["weight_bytes"] + step["cache_bytes"]
    rates, steps = one["read_rates"], one["output_len"] - 1
    assert len(rates) == 4
    used = [step["bytes"] * steps / seconds for seconds in one["decode"]["seconds"]]
    around = [(before + after) / 2 for before, after in pairwise(rates)]
    assert one["mbu"] == pytest.approx(sorted(mine / there for mine, there in zip(used, around, strict=True))[1])
    assert one["peak_memory_bytes"] > 10**7
    assert {"command", "date", "machine", "versions", "model"} <= result.keys()
    write_report(tmp_path / "r", result)
    page = (tmp_path / "r" / "report.md").read_text()
    assert "| tg3 @ d16 |" in page and "NOT MEASURED BY US" in page
    assert (tmp_path / "r" / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_throughput_counts_all_tokens(call: Call, tiny: Tiny, tiny_folder: Path) -> None:
    arguments = ("--num-prompts", "5", "-p", "4-9", "-n", "2-3", "-r", "2", "--dtype", "float32", "--quiet")
    outcome = call("bench", "throughput", tiny_folder, *arguments, "--json")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)["throughput"]
    assert found["num_requests"] == 5
    assert 5 * 6 <= found["total_num_tokens"] <= 5 * 12
    assert len(found["elapsed_times"]) == 2
    assert found["tokens_per_second"] == pytest.approx(found["total_num_tokens"] / found["elapsed_time"])
    assert found["requests_per_second"] == pytest.approx(5 / found["elapsed_time"])


def test_compare_runs_transformers_and_counts_meshes(call: Call, tiny: Tiny, tiny_folder: Path) -> None:
    outcome = call(
        *("bench", "compare", tiny_folder, "--peers", "transformers,vllm", "-b", "2", *SMALL, "-r", "2"),
        *("--mesh", "all", "--simulate-devices", "4", "--threads", "1", "--prefill-len", "24"),
        *("--num-prompts", "3", "--json", "--quiet"),
    )
    assert outcome.status == 0, outcome.err
    result = json.loads(outcome.out)
    compared = result["compare"]
    assert len(result["strategies"]["rows"][0]["works"]) == 1, "a prefill by itself has no step to count"
    assert list(compared["not_installed"]) == ["vllm"]
    says(compared["not_installed"]["vllm"], "pip install vllm")
    work, alone = compared["works"]
    assert (alone["batch_size"], alone["input_len"], alone["output_len"]) == (1, 24, 1)
    assert ["decode" in one for one in alone["results"]] == [False, False]
    assert [one["contender"] for one in work["results"]] == ["moejax", "transformers"]
    assert [one["tokens"] for one in work["results"]] == ["same tokens"] * 2
    for one in work["results"]:
        assert len(one["decode"]["seconds"]) == 2 and min(one["decode"]["seconds"]) > 0
    served = compared["throughput"]  # padded prompts, whose tokens are right in float32
    assert (served["num_requests"], served["rounds"]) == (3, 1)
    assert [(one["contender"], one["tokens"] == "WRONG") for one in served["results"]] == [
        ("moejax", False),
        ("transformers", False),
    ]
    assert "grouped_mm (its default)" in compared["contenders"][1]["how"]
    says(result["strategies"]["how"], "counted", "simulated")
    assert [row["strategy"] for row in result["strategies"]["rows"]] == ["intra-expert", "inter-expert", "hybrid"]


def test_counted_meshes_are_a_table_of_the_terminal(call: Call) -> None:
    meshes = ("--peers", "none", "--mesh", "all", "--simulate-devices", "4", "--num-iters", "0")
    outcome = call("bench", "compare", "--random", "186m", *meshes)
    assert outcome.status == 0, outcome.err
    assert "|" not in outcome.out and "collectives" in outcome.out
    kinds = ("intra-expert", "inter-expert", "hybrid")
    assert all(f"{kind}: data=1,expert=" in outcome.out for kind in kinds)


def test_when_every_system_asked_for_fails_nothing_was_compared(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def compared(plan: SystemsPlan, on_event: Callable[[str], None]) -> list[Standing]:
        assert list(plan.contenders) == ["moejax", "vllm"]
        return [Standing(name="moejax", how="so"), Standing(name="vllm", failed="vllm ended (exit code 1)")]

    monkeypatch.setitem(PEERS, "vllm", dataclasses.replace(PEERS["vllm"], needs=()))
    monkeypatch.setattr("moejax.bench.compare.compare", compared)
    outcome = call("bench", "compare", "demo", "--peers", "vllm", "--quiet")
    assert outcome.status == 1
    error_line(outcome.err, "nothing")
    says(outcome.out, "vllm", "0.0 s", "FAILED", "exit code 1")


def test_a_converted_folder_is_not_for_other_systems(tmp_path: Path) -> None:
    converted = SimpleNamespace(tensors=object.__new__(OrbaxFolder), folder=tmp_path)
    facts: Any = SimpleNamespace(name="here", source=converted)
    with refuses(ValueError, "here", "moejax convert here NEW_FOLDER"):
        hf_folder(facts, "bfloat16", tmp_path, 0)


def test_a_source_is_what_load_takes() -> None:
    assert SourceFlags(random="186m").source() == "random:186m" == source_name("random:186m")
    assert SourceFlags(checkpoint="some/where/model").source() == "some/where/model"
    assert source_name("some/where/model") == "model" and source_name("random:some/small.json") == "random:small"


@pytest.mark.parametrize(("given", "got"), [((None, None), "neither"), (("demo", "186m"), "both")])
def test_one_source_is_needed(given: tuple[str | None, str | None], got: str) -> None:
    with pytest.raises(ValueError) as caught:
        SourceFlags(checkpoint=given[0], random=given[1]).source()
    assert str(caught.value) == (
        f"give a CHECKPOINT or --random MODEL, got {got}; MODEL is one of mixtral-8x7b, mixtral-8x22b, 186m, 742m, or "
        "the path of a config.json"
    )


def test_the_counted_baseline_holds(call: Call) -> None:
    """The regression guard that CI runs: FLOPs, bytes, collectives, launches and compilations of the demo model."""
    outcome = call("bench", "check", BASELINE, "--counted-only")
    assert outcome.status == 0, outcome.out + outcome.err
    says(outcome.out, f"{len(json.loads(BASELINE.read_text())['cases'])} cases")


def test_a_changed_count_is_named(call: Call, tmp_path: Path) -> None:
    baseline = json.loads(BASELINE.read_text())
    baseline["cases"] = baseline["cases"][:1]
    programs = baseline["cases"][0]["counted"]["programs"]
    programs["generate"]["flops"] -= 1000
    programs["extra"] = 1
    (tmp_path / "b.json").write_text(json.dumps(baseline))
    outcome = call("bench", "check", tmp_path / "b.json", "--counted-only")
    assert outcome.status == 1
    now = programs["generate"]["flops"] + 1000
    says(outcome.out, "programs.generate.flops", f"{now - 1000:,}", f"{now:,}", "0.0%")
    says(outcome.out, "programs.extra", "1", "absent")
    assert outcome.out.endswith("1 cases: 2 differences\n")


def test_a_new_baseline_has_times_and_holds(call: Call, tmp_path: Path) -> None:
    baseline = json.loads(BASELINE.read_text())
    baseline["cases"], baseline["tolerance"] = baseline["cases"][:1], 1e6
    path = tmp_path / "b.json"
    path.write_text(json.dumps(baseline))
    assert call("bench", "check", path, "--update", "-r", "1").status == 0
    written = json.loads(path.read_text())
    assert written["machine"] and written["cases"][0]["times"].keys() == {"prefill", "decode"}
    outcome = call("bench", "check", path, "-r", "1")
    assert outcome.status == 0, outcome.out
    says(outcome.out, "1000001.00 x")
    written["tolerance"] = -1  # no time is that short: the guard has to see it
    path.write_text(json.dumps(written))
    outcome = call("bench", "check", path, "-r", "1")
    assert (outcome.status, outcome.out.count("FAILED")) == (1, 2)


def test_a_mesh_that_fails_is_an_error(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """On devices that are there in a number that suffices; the comparison itself is a fake."""

    def fake(plan: SystemsPlan, **_: object) -> list[Standing]:
        ours, mesh = plan.contenders
        return [Standing(name=ours), Standing(name=mesh, failed=f"{mesh} cannot load: out of memory")]

    monkeypatch.setattr("moejax.bench.compare.compare", fake)
    monkeypatch.setattr("moejax.bench.standings.as_json", lambda *_: {})
    monkeypatch.setattr("moejax.bench.machine.visible_devices", lambda: ("gpu", 2))
    outcome = call("bench", "compare", "demo", "--peers", "none", "--mesh", "expert=2", "--json")
    assert outcome.status == 1
    error_line(outcome.err, "moejax expert=2", "out of memory")
    outcome = call("bench", "compare", "demo", "--peers", "none", "--mesh", "expert=4")
    assert outcome.status == 2
    error_line(outcome.err, "--mesh expert=4", "4 devices", "2", "--simulate-devices 4")


RANGE = ("--input-len", "LOW-HIGH", "got '9-2'")
WRONG = [
    (("latency",), ("CHECKPOINT", "--random MODEL", "got neither")),
    (("latency", "demo", "--random", "186m"), ("CHECKPOINT", "--random MODEL", "got both")),
    (("latency", "demo", "-b", "1,x"), ("--batch-size", "1,8,16", "got '1,x'")),
    (("latency", "demo", "-b", "0"), ("--batch-size", "1", "got 0")),
    (("latency", "demo", "-n", "2000"), ("2128 tokens", "1024 positions")),
    (("latency", "demo", "-r", "0"), ("--num-iters", "1", "got 0")),
    (("latency", "demo", "--num-iters-warmup", "0"), ("--num-iters-warmup", "1")),
    (("latency", "demo", "--mesh", "tensor=2"), ("CPU devices", "simulated")),
    (("latency", "--random", "mixtral-9x9b"), ("'mixtral-9x9b'",)),
    (("throughput", "demo", "-p", "9-2"), RANGE),
    (("throughput", "demo", "-n", "a-b"), ("--output-len", "LOW-HIGH", "1", "LOW", "HIGH")),
    (("throughput", "demo", "-p", "5-"), ("--input-len", "LOW-HIGH", "1", "LOW", "HIGH")),
    (("throughput", "demo", "--num-prompts", "0"), ("--num-prompts", "1", "got 0")),
    (("compare", "demo", "--peers", "vlm"), ("'vlm'",)),
    (("compare", "demo", "--peers", ""), ("--peers", "none")),
    (("compare", "demo", "--peers", "vllm"), ("vllm",)),
    (("throughput", "demo", "--num-prompts", "99999999999"), ("--num-prompts", "100,000", "got 99999999999")),
    (("latency", "demo", "-b", "1,1000000000"), ("--batch-size", "100,000", "got 1000000000")),
    (
        ("latency", "demo", "-b", "90000", "-p", "600"),
        ("--batch-size", "50,000,000"),
    ),
    (("compare", "demo", "--prefill-len", "0"), ("--prefill-len", "1", "got 0")),
    (("compare", "demo", "--prefill-len", "5000"), ("--prefill-len", "1023", "got 5000", "1024")),
    (("compare", "demo", "--num-prompts", "-1"), ("--num-prompts", "0", "got -1")),
    (("compare", "demo", "--num-prompts", "100001"), ("--num-prompts", "100,000", "got 100001")),
    (("compare", "demo", "--threads", "0"), ("--threads", "1", "got 0")),
    (("check", "docs/bench_baseline.json", "-r", "0"), ("--num-iters", "1", "got 0")),
    (("compare", "demo", "--mesh", "all"), ("--mesh", "--simulate-devices")),
    (("compare", "demo", "--mesh", "expert=9"), ("experts is 8",)),
    (
        ("compare", "demo", "--peers", "none", "--mesh", "expert=2"),
        ("--mesh expert=2", "simulated"),
    ),
    (("compare", "demo", "-r", "0"), ("--num-iters", "1", "0 with --mesh", "got 0")),
    (("check", "nowhere.json"), ("nowhere.json", "No such file", "docs/bench_baseline.json")),
]


@pytest.mark.parametrize(("arguments", "facts"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_mistakes_are_one_line(call: Call, arguments: tuple[str, ...], facts: tuple[str, ...]) -> None:
    outcome = call("bench", *arguments)
    assert (outcome.status, outcome.out) == (2, "")
    error_line(outcome.err, *facts)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (
            "{}",
            ("cases, environment, tolerance", "docs/bench_baseline.json"),
        ),
        ("[1]", ("JSON list", "object")),
        ("{", ("JSON",)),
        (
            '{"environment": {}, "tolerance": "a", "cases": [1]}',
            ("environment", "tolerance"),
        ),
        ('{"environment": {}, "tolerance": 1, "cases": []}', ("cases", "one case")),
        (
            '{"environment": {}, "tolerance": 1, "cases": [{"source": "demo"}]}',
            ("case 0", "8 keys"),
        ),
        (NO_BATCH, ("case 0", "whole numbers")),
    ],
)
def test_a_file_that_is_no_baseline(call: Call, tmp_path: Path, text: str, facts: tuple[str, ...]) -> None:
    (tmp_path / "b.json").write_text(text)
    outcome = call("bench", "check", tmp_path / "b.json")
    assert outcome.status == 2
    error_line(outcome.err, *facts)
    assert "Error" not in outcome.err


def test_a_baseline_that_needs_more_devices_says_so_before_it_runs(call: Call, tmp_path: Path) -> None:
    baseline = json.loads(BASELINE.read_text())
    baseline["cases"] = [{**baseline["cases"][0], "mesh": "expert=4,tensor=4"}]
    (tmp_path / "b.json").write_text(json.dumps(baseline))
    outcome = call("bench", "check", tmp_path / "b.json", "--counted-only")
    assert outcome.status == 2
    error_line(outcome.err, "b.json", "expert=4,tensor=4", "16 devices", "8", "--simulate-devices 16")


def test_times_of_another_machine_are_not_compared(call: Call, tmp_path: Path) -> None:
    shutil.copy(BASELINE, tmp_path)
    outcome = call("bench", "check", tmp_path / BASELINE.name)
    assert outcome.status == 2
    error_line(outcome.err, "--counted-only")


def test_counts_of_another_jax_are_not_compared(call: Call, tmp_path: Path) -> None:
    baseline = json.loads(BASELINE.read_text())
    baseline["environment"]["jax"] = "0.1"
    (tmp_path / "b.json").write_text(json.dumps(baseline))
    outcome = call("bench", "check", tmp_path / "b.json", "--counted-only")
    assert outcome.status == 2
    error_line(outcome.err, "jax 0.1", "--update")


def test_the_group_shows_its_commands(call: Call) -> None:
    outcome = call("bench")
    assert outcome.status == 0
    for name in ("latency", "throughput", "compare", "check"):
        assert f"  {name} " in outcome.out
        text = call("bench", name, "--help")
        assert text.status == 0 and f"moejax bench {name} " in text.out.partition("Examples:")[2]
