"""`moejax mesh`: how the model is named, and that output says what was asked and what is a guess."""

import csv
import json
import re
from pathlib import Path

import pytest

from moejax.cli import console
from moejax.planning.expert_load import DEMO_LOAD
from moejax.planning.hardware_file import load_hardware
from tests.messages import says
from tests.moejax.cli.conftest import Call

COMPARE = ("mesh", "compare", "--model", "mixtral-8x7b")


def test_a_model_may_be_given_without_its_flag(call: Call) -> None:
    for command in (("mesh", "compare", "--devices", "2", "--hardware", "H200", "-b", "1", "--json"),
                    ("mesh", "show", "--mesh", "tp=2", "--json")):  # fmt: skip
        alone, flagged = call(*command, "demo"), call(*command, "--model", "demo")
        assert (alone.status, alone.err) == (0, "") and alone.out == flagged.out


def test_saved_results_name_what_they_are_of(call: Call, tmp_path: Path) -> None:
    load = tmp_path / "load.json"
    load.write_text(DEMO_LOAD.read_text())
    asked = ("mesh", "compare", "demo", "--devices", "2", "--hardware", "h200", "-b", "1", "--software", "VLLM")
    found = json.loads(call(*asked, "--json", "--expert-load", load, "--objective", "TTFT", "--input-len", "99").out)
    named = {"model": "demo", "hardware": "h200", "software": "vllm", "skew": None, "expert_load": str(load)}
    assert found["asked"].items() >= {**named, "input_len": 99, "context": 1024, "objective": "ttft"}.items()
    (line, *_) = csv.DictReader(call(*asked, "--csv", "--skew", "zipf:1.0").out.splitlines())
    assert line.items() >= {"model": "demo", "hardware": "h200", "software": "vllm", "skew": "zipf:1.0"}.items()
    shown = json.loads(call("mesh", "show", "demo", "--mesh", "tensor=2", "--dtype", "float32", "--json").out)
    assert (shown["model"], shown["dtype"], shown["context"]) == ("demo", "float32", 1024)


GUESSES: list[tuple[tuple[str, ...], set[str]]] = [
    (("--devices", "1", "--hardware", "cpu"), {"memory_bytes"}),
    (("--devices", "2", "--hardware", "cpu"), {"memory_bytes", "link.bandwidth", "link.latency"}),
    (("--devices", "1,2", "--hardware", "cpu"), {"memory_bytes", "link.bandwidth", "link.latency"}),
    (("--devices", "2", "--hardware", "l40s"), {"devices_per_node", "software.moejax"}),
    (("--devices", "2", "--hardware", "l40s", "--software", "vllm"), {"devices_per_node"}),
    (("--devices", "16", "--hardware", "l40s", "--software", "ideal"), {"devices_per_node", "network.bandwidth"}),
    (("--devices", "8", "--hardware", "h100-sxm", "--software", "ideal"), set()),
    (("--devices", "8", "--hardware", "h100-sxm", "--dtype", "float32"), set()),
]


@pytest.mark.parametrize(("asked", "guessed"), GUESSES, ids=[" ".join(asked) for asked, _ in GUESSES])
def test_figures_that_are_guesses_are_said_below_the_table(
    call: Call, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], guessed: set[str]
) -> None:
    """Those that the comparison goes by, in the words of the file, a line each."""
    monkeypatch.setattr(console, "PIPED_WIDTH", 400)
    out = call("mesh", "compare", "demo", "-b", "1", *asked).out
    said = dict(re.findall(r"^guess +([\w.]+): (.*)$", out, re.M))
    sources = load_hardware(asked[3]).sources
    assert said == {key: sources[key] for key in guessed}
    assert all(text.startswith("assumed") for text in said.values())
    assert not said or out.index("\nbest" if "," not in asked[1] else "\nfewest") < out.index("\nguess ")


def test_a_guess_is_said_of_what_does_not_fit(call: Call) -> None:
    out = call("mesh", "compare", "mixtral-8x22b", "--devices", "1", "--hardware", "cpu", "-b", "1").out
    says(out, "nothing fits", "memory_bytes", "assumed", "moejax mesh calibrate")


def test_a_picture_is_titled_with_what_was_asked(call: Call, tmp_path: Path) -> None:
    """Of SVG, whose text can be read."""
    names = ("steps.svg", "frontiers.svg")
    asked = (*COMPARE, "--devices", "8", "--hardware", "h100-sxm", "-b", "8", "--software", "vllm", "--csv")
    asked = (*asked, "--skew", "zipf:1.0", "--input-len", "300", "--context", "900")
    done = call(*asked, "--plot", tmp_path / names[0], "--pareto", tmp_path / names[1])
    assert done.status == 0
    for name in names:
        text = " ".join(re.findall(r"<!-- (.*?) -->", (tmp_path / name).read_text()))
        says(text, "mixtral-8x7b", "8", "NVIDIA H100", "bfloat16", "vllm", "300", "900", "zipf:1.0")


def test_help_names_every_form_of_a_picture(call: Call) -> None:
    text = " ".join(call("mesh", "compare", "--help").out.split())
    for flag in ("--plot FILE", "--pareto FILE"):
        says(text[text.index(flag) :], ".png", ".svg", ".pdf")
