"""The help texts: complete, readable, and true."""

import re
import shlex
from typing import get_args

import pytest

import moejax
from moejax.cli.decode import EXAMPLES as DECODE_EXAMPLES
from moejax.cli.info import EXAMPLES as INFO_EXAMPLES
from moejax.cli.mesh import COMPARE_EXAMPLES, SHOW_EXAMPLES
from moejax.cli.serve import EXAMPLES as SERVE_EXAMPLES
from moejax.decoding.sampling_params import PARAMETER_NAMES
from moejax.families.table import named_configs
from moejax.ops.table import BackendName
from tests.messages import says
from tests.moejax.cli.conftest import Call

# Sampling parameters whose flag is not simply their name.
OTHER_NAMES = {"stop_token_ids": "--stop-token-id", "skip_special_tokens": "--no-skip-special-tokens"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("decode", "--help"),
        ("serve", "--help"),
        ("info", "-h"),
        ("mesh", "--help"),
        ("mesh", "compare", "-h"),
        ("mesh", "show", "-h"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("columns", [80, 100, 250])
def test_help_has_examples_and_fits(
    call: Call, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    outcome = call(*arguments)
    assert (outcome.status, outcome.err) == (0, "")
    usage, _, examples = outcome.out.partition("Examples:")
    assert usage.startswith("Usage: moejax ")
    assert "  moejax " in examples
    assert max(map(len, usage.splitlines())) <= min(columns, 100)
    assert max(map(len, examples.splitlines())) <= 100
    assert "\x1b" not in outcome.out


def test_list_of_commands_is_not_cut(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = call("--help").out
    commands = out.partition("Commands:")[2]
    assert re.search(r"^  info  +\w+", commands, re.M)
    assert "..." not in commands


@pytest.mark.parametrize("command", ["decode", "info"])
def test_help_of_the_checkpoint_names_the_named_models(call: Call, command: str) -> None:
    text = " ".join(call(command, "--help").out.split())
    says(text, "random:NAME", ", ".join(named_configs()))


@pytest.mark.parametrize(("command", "heading"), [("decode", "Argument"), ("convert", "Arguments")])
def test_arguments_have_a_heading(call: Call, command: str, heading: str) -> None:
    assert re.findall(r"^Arguments?(?=:$)", call(command, "--help").out, re.M) == [heading]


def test_every_expert_backend_is_named(call: Call) -> None:
    text = " ".join(call("decode", "--help").out.split())
    says(text, ", ".join(("auto", *get_args(BackendName))))


def test_exit_codes_of_verify(call: Call) -> None:
    text = " ".join(call("verify", "--help").out.split())
    says(text, "0", "1", "2")


def test_no_arguments_is_help(call: Call) -> None:
    assert call().out == call("--help").out
    assert call().status == 0


def test_version(call: Call) -> None:
    outcome = call("--version")
    assert (outcome.status, outcome.out, outcome.err) == (0, f"moejax {moejax.__version__}\n", "")


@pytest.mark.parametrize("name", PARAMETER_NAMES)
def test_every_sampling_parameter_is_a_flag(call: Call, name: str) -> None:
    flag = OTHER_NAMES.get(name, f"--{name.replace('_', '-')}")
    assert re.search(rf"(?<![\w-]){flag}(?![\w-])", call("decode", "--help").out)


@pytest.mark.parametrize(
    ("command", "examples"),
    [
        ("decode", DECODE_EXAMPLES),
        ("serve", SERVE_EXAMPLES),
        ("info", INFO_EXAMPLES),
        ("mesh compare", COMPARE_EXAMPLES),
        ("mesh show", SHOW_EXAMPLES),
    ],
    ids=["decode", "serve", "info", "mesh compare", "mesh show"],
)
def test_examples_use_flags_that_exist(call: Call, command: str, examples: tuple[str, ...]) -> None:
    known = call(*command.split(), "--help").out.partition("Examples:")[0]
    for example in examples:
        words = shlex.split(example.rpartition("|")[2])
        assert " ".join([*words, ""]).startswith(f"moejax {command} ")
        for flag in (word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)):
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", known), f"{example} has {flag}"
