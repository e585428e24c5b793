"""The commands of README and docs: what scripts/walk_docs.py types in a clean environment, and what it leaves out."""

import re

import pytest

from moejax.cli.app import run
from scripts.walk_docs import PAGES, ROOT, Shown, missing, shown

COMMANDS = [one for page in PAGES for one in shown(page, (ROOT / page).read_text(encoding="utf-8")) if one.file is None]


def test_a_page_is_read_as_it_is_typed() -> None:
    page = (
        "```console\n$ make demo\nnothing of ours\n$ moejax info demo      # what is in it\ntwo  lines\n...\n"
        "of 1.5 MB \\\n  output\n```\ntext\n"
        "```\nmoejax decode demo \\\n    -n 4\nmoejax info\n```\n"
        "```console\n$ cat a.jsonl\n{}\n```\n```python\nmoejax x\n```\n"
    )
    first, second, third, fourth = shown("page", page)
    assert (first.command, first.printed) == ("moejax info demo", ("two  lines", "...", "of 1.5 MB    output"))
    assert (second.command, second.printed) == ("moejax decode demo -n 4", ())
    assert third.command == "moejax info"
    assert (fourth.file, fourth.printed, third.file) == ("a.jsonl", ("{}",), None)
    assert missing(first, "a line\ntwo lines\nof 22,7 MB \\\n output\n") == []
    assert missing(first, "two lines") == ["of 1.5 MB    output"]


def test_there_are_commands_on_many_pages() -> None:
    assert len({one.page for one in COMMANDS}) > 8 and sum(one.why_not_typed is None for one in COMMANDS) > 15


@pytest.mark.parametrize("one", COMMANDS, ids=lambda one: f"{one.page}: {one.command}"[:80])
def test_every_command_has_flags_that_exist(one: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    words = one.command.partition("|")[0].partition(">")[0].split()
    command = words[1:3] if words[1] in ("mesh", "bench") else words[1:2]
    assert run([*command, "--help"]) == 0
    known = capsys.readouterr().out
    for flag in re.findall(r"(?<=\s)--?[a-z][a-z-]*(?=\s|$)", one.command):
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", known), f"{one.command} has {flag}"
