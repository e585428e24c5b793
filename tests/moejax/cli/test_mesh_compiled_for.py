"""`moejax mesh compare --compiled-for`, as a user calls it, with the compiler's answers made up."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from moejax.compiling import splits
from moejax.compiling.cases import Case
from tests.messages import says
from tests.moejax.cli.conftest import Call
from tests.moejax.compiling.counted import counted


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def instead(cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
        yield from map(counted, cases)

    monkeypatch.setattr(splits, "compile_all", instead)
    monkeypatch.setattr(splits, "missing", lambda extra: None)


COMPARE = ("mesh", "compare", "mixtral-8x7b", "--devices", "2", "-b", "8", "--hardware", "h200")


@pytest.mark.usefixtures("compiled")
def test_the_command_line_shows_what_was_compiled(call: Call) -> None:
    outcome = call(*COMPARE, "--compiled-for", "h200")
    assert outcome.status == 0
    _, heading, table = outcome.out.partition("as XLA compiles them for h200, per device")
    assert heading and sum(line.split()[-4:-1] == ["13", "20", "33"] for line in table.splitlines()) == 5
    says(table, "differs", "expert=2", "gather", "1 x all-gather over expert of 8 int32 in moe")
    outcome = call(*COMPARE, "--compiled-for", "h200", "--json", "--quiet")
    found = [one["compiled_for"] for one in json.loads(outcome.out)["rows"] if one["built"]]
    assert outcome.err == "" and {one["kernels"] for one in found} == {13}
    assert {one["bytes_per_device"]["activations"] for one in json.loads(outcome.out)["rows"] if one["built"]} == {
        37_000
    }


@pytest.mark.usefixtures("compiled")
def test_what_cannot_be_compiled_is_one_line(call: Call) -> None:
    for arguments, facts_ in (
        ((*COMPARE[:-1], "l40s", "--compiled-for", "h200"), ("--compiled-for h200", "--hardware h200")),
        ((*COMPARE, "--compiled-for", "z9"), ("'z9'", "h200")),
        ((*COMPARE[:4], "1,2", *COMPARE[5:], "--compiled-for", "h200"), ("--compiled-for", "1,2")),
    ):
        outcome = call(*arguments)
        assert (outcome.status, outcome.out) == (2, "")
        says(outcome.err, *facts_)
