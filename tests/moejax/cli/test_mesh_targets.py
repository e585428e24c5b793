"""`moejax mesh compare` with targets and several numbers of devices: what is printed, drawn and refused."""

import json
import re
import shlex
from pathlib import Path

import pytest

from moejax import compare_meshes
from moejax.cli import console
from moejax.cli.mesh_answers import command_text
from moejax.cli.mesh_values import device_numbers, duration
from moejax.planning.serve_command import serve_command
from moejax.planning.sweep import answer
from tests.messages import error_line, says
from tests.moejax.cli.conftest import Call

ON_H100 = ("mesh", "compare", "--model", "mixtral-8x7b", "--hardware", "h100-sxm", "--software", "ideal")
EIGHT = (*ON_H100, "--devices", "8")

MISTAKES: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    ((*EIGHT, "--tpot", "0.02"), ("--tpot", "unit", "got '0.02'", "0.02ms", "0.02s")),
    ((*EIGHT, "--ttft", "200"), ("--ttft", "unit", "got '200'", "200ms")),
    ((*EIGHT, "--ttft", "0ms"), ("--ttft", "above 0", "200ms", "got '0ms'")),
    ((*EIGHT, "--ttft", "-5ms"), ("--ttft", "above 0", "got '-5ms'")),
    ((*EIGHT, "--ttft", "fast"), ("--ttft", "s, ms, us", "got 'fast'")),
    ((*EIGHT, "--tpot", "2min"), ("--tpot", "s, ms, us", "got '2min'")),
    ((*ON_H100, "--devices", "4-2"), ("--devices", "1-16", "got '4-2'")),
    ((*ON_H100, "--devices", "1,,2"), ("--devices", "1,2,4,8", "got '1,,2'")),
    ((*ON_H100, "--devices", "0-4"), ("--devices", "1", "got '0-4'")),
    ((*ON_H100, "--devices", "1-65537"), ("--devices", "65,536", "got '1-65537'")),
    ((*ON_H100, "--devices", "1-300"), ("--devices", "256", "got 300")),
    ((*ON_H100, "--devices", "1,2", "--plot", "a.png"), ("--plot", "--devices 1,2", "--pareto")),
    ((*ON_H100, "--devices", "1-2", "--compile"), ("--compile", "--devices 1-2")),
    ((*ON_H100, "--devices", "1-2", "--measure"), ("--measure", "--devices 1-2")),
    ((*ON_H100, "--devices", "1-17", "--pareto", "a.png"), ("--pareto", "16", "got 17", "--devices 1-17")),
    ((*EIGHT, "--pareto", "a.gif"), ("--pareto", ".png", "got 'a.gif'")),
    ((*EIGHT, "--osl", "500"), ("--osl", "--context")),
    ((*EIGHT, "--isl", "500"), ("--isl", "--input-len")),
    ((*EIGHT, "--request-latency", "9"), ("--request-latency", "--ttft", "--tpot")),
    ((*ON_H100, "--total_gpus", "8"), ("--total_gpus", "--devices")),
]


@pytest.mark.parametrize(("arguments", "facts"), MISTAKES, ids=[" ".join(mistake[0][6:]) for mistake in MISTAKES])
def test_a_mistake_is_one_line(call: Call, arguments: tuple[str, ...], facts: tuple[str, ...]) -> None:
    outcome = call(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    error_line(outcome.err, *facts)


@pytest.mark.parametrize(
    ("text", "seconds"), [("200ms", 0.2), ("1.5s", 1.5), (" 20 MS ", 0.02), ("800us", 8e-4), (".5s", 0.5), ("2.s", 2.0)]
)
def test_times_are_read_with_their_unit(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds, rel=1e-12)


def test_numbers_of_devices_are_read() -> None:
    assert device_numbers("8") == [8]
    assert device_numbers("1-4") == [1, 2, 3, 4]
    assert device_numbers("1, 2,4-6,64") == [1, 2, 4, 5, 6, 64]


def served(text: str) -> list[list[str]]:
    """The commands that a table names, as a shell reads them."""
    found = re.findall(r"^serve: +(moejax(?:.*\\\n)*.*)$", text, re.M)
    return [shlex.split(command.replace("\\\n", " ")) for command in found]


def section(text: str, batch: int) -> str:
    """What is printed of one batch size."""
    return text.partition(f"\nbatch {batch}\n")[2].partition("\n\n")[0]


@pytest.mark.parametrize("width", [80, 120])
def test_several_numbers_of_devices_are_a_line_each(call: Call, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(console, "PIPED_WIDTH", width)
    asked = (*ON_H100, "--devices", "1-4,8", "-b", "1,32", "--ttft", "200ms", "--tpot", "10ms")
    outcome = call(*asked)
    assert (outcome.status, outcome.err) == (0, "")
    assert max(map(len, outcome.out.splitlines())) <= width and "…" not in outcome.out
    rows = compare_meshes(
        "mixtral-8x7b", [1, 2, 3, 4, 8], "h100-sxm", batch_size=[1, 32], ttft=0.2, tpot=0.01, software="ideal"
    )
    says(outcome.out, "mixtral-8x7b on 1-4,8 x NVIDIA H100 SXM, 80 GB")
    for batch in (1, 32):
        found = answer([row for row in rows if row.batch_size == batch])
        part = section(outcome.out, batch)
        lines = [line.split() for line in part.splitlines() if re.match(r" +\d", line)]
        lines = [words for words in lines if words[0].isdigit() and len(words) > 8]
        assert [words[0] for words in lines] == ["2", "3", "4", "8"]
        assert found.fewest and found.most
        assert [words[0] for words in lines if "fewest" in " ".join(words)] == [str(found.fewest.devices)]
        text = " ".join(part.split())
        says(text, f"{found.fewest.devices} devices", "fewest", "TTFT 200 ms", "TPOT 10.0 ms", found.fewest.label)
        says(text, found.fewest.label, "TTFT", f"TPOT {1000 * found.fewest.tpot_seconds:.2f} ms")
        assert served(part)[0] == serve_command(found.fewest, "CHECKPOINT")
        assert re.findall(r"nothing fits on ([\d, ]*) device", text) == ["1"]
        assert found.fewest is found.most and "most tokens/s" in text and "most: " not in text
        says(text, "most tokens/s", found.fewest.label)
    every = " ".join(outcome.out.partition("of these batch sizes")[2].partition("\n\n")[0].split())
    says(every, "2 devices", "batch 1", "most: ", "4 devices", "batch 32")
    assert every.count("most tokens/s") == 1
    assert served(outcome.out)[-1] == serve_command(answer(rows).most, "CHECKPOINT")  # type: ignore[arg-type]
    missing = [line for line in section(outcome.out, 32).splitlines() if re.search(r"\b(both|TPOT) *$", line)]
    assert [line.split()[0] for line in missing] == ["2", "3"]


def test_splits_of_one_number_say_what_they_miss(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PIPED_WIDTH", 80)
    rows = compare_meshes("mixtral-8x7b", 8, "h100-sxm", batch_size=8, ttft=0.0205, tpot=0.0045, software="ideal")
    found = [row for row in rows if row.fits and row.built]
    met = [row for row in found if row.meets_targets]
    outcome = call(*EIGHT, "-b", "8", "--ttft", "20.5ms", "--tpot", "4.5ms")
    assert outcome.status == 0 and max(map(len, outcome.out.splitlines())) <= 80
    lines = [line.split() for line in outcome.out.splitlines() if re.match(r" ?\d+ +\d+ +\d+ ", line)]
    words = ["both" if len(row.misses) == 2 else "".join(row.misses).upper() or "none" for row in found]
    assert [line[-1] for line in lines][: len(found)] == words and {"none", "TTFT", "TPOT", "both"} >= set(words)
    assert len(set(words)) > 1 and words[: len(met)] == ["none"] * len(met)
    text = " ".join(outcome.out.partition("\ntargets:")[2].partition("\nbest ")[0].split())
    says(text, f"{len(met)} of {len(found)}", "TTFT 20.5 ms", "TPOT 4.50 ms", met[0].label)
    assert 1 < len(met) < len(found)
    assert served(outcome.out) == [serve_command(met[0], "CHECKPOINT")]


@pytest.mark.parametrize("devices", ["8", "2,8"])
def test_targets_that_nothing_meets_end_in_the_nearest(call: Call, devices: str) -> None:
    asked = (*ON_H100, "--devices", devices, "-b", "1,8", "--tpot", "1ms")
    outcome = call(*asked)
    assert (outcome.status, outcome.err) == (1, "")
    rows = compare_meshes(
        "mixtral-8x7b", device_numbers(devices), "h100-sxm", batch_size=[1, 8], tpot=0.001, software="ideal"
    )
    closest = answer(rows).nearest
    assert closest
    text = " ".join(outcome.out.partition("of these batch sizes")[2].split())
    says(text, "TPOT 1.00 ms", "tensor=8", "8 devices", "batch 1", "TPOT by 0.640 ms", "1.64 ms")
    found = json.loads(call(*asked, "--json").out)
    assert found["meets_targets"] is False and found["fits"] is True
    assert found["answer"]["nearest"]["misses"] == closest.misses
    assert found["answer"]["nearest"]["label"] == closest.label
    assert call(*asked[:-2], "--tpot", "2ms").status == 0


def test_nothing_that_fits_any_number_of_devices_is_told(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    outcome = call(*ON_H100[:3], "mixtral-8x22b", *ON_H100[4:], "--devices", "1-2", "--pareto", path)
    assert outcome.status == 1 and not path.exists()
    says(outcome.out, "nothing fits", "tensor=2", "--devices 4")
    says(outcome.err, "nothing fits", path)


def test_a_picture_of_frontiers_is_drawn(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    outcome = call(*ON_H100, "--devices", "2,4", "-b", "1", "--tpot", "10ms", "--pareto", path)
    assert outcome.status == 0 and path.stat().st_size > 10_000
    says(outcome.err, "drawn", path)


def test_json_of_several_numbers_has_every_split(call: Call) -> None:
    found = json.loads(call(*ON_H100, "--devices", "2,4", "-b", "1", "--ttft", "1s", "--json").out)
    rows = compare_meshes("mixtral-8x7b", [2, 4], "h100-sxm", batch_size=1, ttft=1.0, software="ideal")
    assert [(one["devices"], one["label"], one["meets_targets"]) for one in found["rows"]] == [
        (row.devices, row.label, row.meets_targets) for row in rows
    ]


def test_extreme_figures_do_not_break_the_table(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(console, "PIPED_WIDTH", 80)
    for rate in ("1e-12", "1e24"):
        path = tmp_path / "extreme.toml"
        path.write_text(
            f'title = "one"\nmemory_bytes = {9 * 10**23}\nbandwidth = {rate}\ndevices_per_node = 8\n'
            f"matrix_rate.bfloat16 = {rate}\nlink = {{bandwidth = 1e-12, latency = 1e3}}\n"
        )
        outcome = call(*ON_H100[:4], "--hardware", path, "--devices", "1-8", "-b", "1,1024", "--tpot", "1ms")
        assert outcome.status in (0, 1) and outcome.err == ""
        assert max(map(len, outcome.out.splitlines())) <= 80 and "…" not in outcome.out


def test_a_command_is_broken_where_a_shell_reads_on() -> None:
    words = ["moejax", "serve", "a folder", "--mesh", "data=1,expert=1,tensor=8", "--max-batch", "8"]
    assert command_text(words, 200).count("\n") == 0
    for width in (60, 45, 10):
        text = command_text(words, width)
        assert "\\\n" in text and shlex.split(text.replace("\\\n", " ")) == words
        assert width == 10 or max(map(len, text.splitlines())) <= width
