"""How the values of flags are read."""

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from moejax.cli.options import number, unescaped, whole_number
from moejax.cli.prompts import read_prompts
from tests.messages import refuses, says
from tests.moejax.cli.conftest import Call


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (r"\n\n", "\n\n"),
        (r"a\tb\r", "a\tb\r"),
        (r"\\n", "\\n"),
        (r"\x41\u20ac", "A€"),
        ("no escapes, not even é", "no escapes, not even é"),
    ],
)
def test_escapes(typed: str, text: str) -> None:
    assert unescaped(typed) == text


@given(st.text(min_size=1))
def test_doubled_backslashes_give_any_text_back(text: str) -> None:
    assert unescaped(text.replace("\\", "\\\\")) == text


@pytest.mark.parametrize("typed", ["\\", r"\q", r"\x4", r"\u12", "a\\\n"])
def test_unknown_escapes_are_refused(typed: str) -> None:
    with refuses(typer.BadParameter, "escape"):
        unescaped(typed)


def test_numbers_and_their_defaults() -> None:
    assert whole_number("-1") == whole_number(-1) == -1
    assert number("1e-2") == number(0.01) == 0.01
    for reader, wrong in ((whole_number, "1.0"), (whole_number, ""), (number, "1,5")):
        with pytest.raises(typer.BadParameter, match=f"got '{wrong}'"):
            reader(wrong)


@pytest.mark.parametrize("typed", ["0 17 42", "[0, 17, 42]", "0,17,42", "  0  17 42 "])
def test_token_ids(typed: str) -> None:
    assert read_prompts(["a", "b"], [typed, "3"]) == ["a", "b", [0, 17, 42], [3]]


@pytest.mark.parametrize(
    "arguments",
    [
        ("mesh", "compare", "demo", "--devices", "2", "--hardware", "cpu", "--dtype", "BF16", "--dispatch", "Gather"),
        ("mesh", "show", "--model", "demo", "--mesh", "expert=2", "--dispatch", "ALL_TO_ALL", "--dtype", "Float32"),
        ("decode", "demo", "--prompt", "A", "-n", "1", "--expert-backend", "Blocked", "--dtype", "FP32", "--quiet"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_names_are_taken_in_any_case(call: Call, arguments: tuple[str, ...]) -> None:
    assert call(*arguments).status == 0


def test_an_empty_target_is_told(call: Call) -> None:
    outcome = call("convert", "demo", "")
    assert outcome.status == 2 and outcome.out == ""
    says(outcome.err, "target", "empty")
