"""The README is as wide as the code, and what it says the commands print is what they print."""

import re
from pathlib import Path

import pytest

from moejax import Stats
from moejax.cli.report import statistics
from tests.moejax.cli.conftest import Call

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TARGETS = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
MAX_COLUMNS = 120


def test_lines_are_no_wider_than_code() -> None:
    wide = [line for line in README.splitlines() if len(line) > MAX_COLUMNS and not line.startswith("|")]
    assert wide == []


def test_statistics_of_the_demo_have_their_form() -> None:
    """Everything but the digits: the README cannot know how fast a reader's machine is."""
    stats = Stats(
        prompt_tokens=4,
        padded_rows=0,
        device_rows=(0,),
        expert_rows=((0,),),
        generated_tokens=76,
        ttft_seconds=0.014,
        prefill_seconds=0.01,
        decode_seconds=0.5,
        decode_tokens_per_second=1234.5,
        call_decode_seconds=0.5,
        compile_seconds=4.9,
    )
    done, speed = statistics([stats], ["stop"])
    shape = re.sub(r"[\d.,]+", "0", f"\n{done}\n{speed} | load 0.0 s\n")
    assert shape in re.sub(r"[\d.,]+", "0", README)


@pytest.mark.parametrize("line", re.findall(r"^\$ (moejax \S+ .*)$", README, re.MULTILINE))
def test_commands_use_flags_that_exist(call: Call, line: str) -> None:
    words = line.partition("#")[0].split()
    command = words[1:3] if words[1] == "mesh" else words[1:2]
    known = call(*command, "--help").out
    for flag in (word for word in words if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", known), f"{line} has {flag}"


def test_the_table_of_splits_is_what_the_command_prints(call: Call) -> None:
    ((line, table),) = re.findall(r"^\$ moejax (mesh compare .*)\n([^`]*)^```$", README, re.MULTILINE)
    assert call(*line.split()).out == table


def test_the_answer_on_numbers_of_devices_is_what_the_command_prints(call: Call) -> None:
    (line,) = re.findall(r"^\$ moejax (mesh compare (?:.*\\\n)*.*)$", TARGETS, re.MULTILINE)[:1]
    (answer,) = re.findall(r"^```\n(fewest:[^`]*)^```$", TARGETS, re.MULTILINE)
    assert answer in call(*line.replace("\\\n", " ").split()).out
