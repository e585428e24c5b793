"""What reaches a terminal, and what reaches a pipe."""

import io
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.table import Table
from rich.text import Text

from moejax.cli import console


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Closed(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Shows stdout and stderr on a terminal. No fixture: pytest sets both anew between a test's setup and its call."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return stream


def show_everything() -> None:
    console.write("text\n")
    table = Table("a", title="title")
    table.add_row("1")
    console.write_rendered(Text("heading", style="bold red"), table)
    console.remark("statistics")
    console.warn("careful")
    console.error("wrong")
    with console.progress("loading", quiet=False):
        pass


def test_terminal_gets_styles(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    show_everything()
    shown = terminal.getvalue()
    for expected in ("\x1b[1;31mheading", "\x1b[2mstatistics\x1b[0m", "\x1b[1;33mwarning:\x1b[0m careful"):
        assert expected in shown
    assert shown.endswith("\x1b[2mloading ...\x1b[0m\r\x1b[K")


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_terminal_without_styles_gets_none(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv(name, value)
    show_everything()
    assert "\x1b" not in terminal.getvalue()
    assert "statistics\nwarning: careful\nerror: wrong\n" in terminal.getvalue()


def test_pipe_gets_no_styles(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    show_everything()
    written = capsys.readouterr()
    assert "\x1b" not in written.out + written.err
    assert written.err == "statistics\nwarning: careful\nerror: wrong\n"


def test_quiet_progress_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with console.progress("loading", quiet=True):
        pass
    assert terminal.getvalue() == ""


def test_progress_shows_each_step_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with console.progress("loading", quiet=False) as step:
        step("half")
        step("")
        console.write("result\n")
    assert terminal.getvalue().endswith("loading ...\x1b[0m\r\x1b[K\x1b[2mhalf ...\x1b[0m\r\x1b[Kresult\n\r\x1b[K")


def test_progress_of_a_long_command_reaches_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0.0, 9.0, 10.0, 10.0, 19.0))
    monkeypatch.setattr("moejax.cli.console.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with console.progress("loading", quiet=False) as step:
        step("too early")
        step("a line")
        step("too early again")
    assert capsys.readouterr().err == "a line ...\n"


def test_control_codes_of_a_model_reach_a_pipe_and_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a\x1b[2J\x07\x9b31m\x7f\r\tb\n"
    console.write(text)
    assert capsys.readouterr().out == text
    terminal = open_terminal(monkeypatch)
    console.write(text)
    assert terminal.getvalue() == "a\\x1b[2J\\x07\\x9b31m\\x7f\\r\tb\n"


@pytest.mark.parametrize("function", [console.write, console.write_rendered])
def test_reader_that_has_gone_is_told_apart(function: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(console.StdoutClosed):
        function("text")


def test_wide_tables_are_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("a")
    table.add_row("x" * (console.PIPED_WIDTH - 4))
    console.write_rendered(table)
    assert "x" * (console.PIPED_WIDTH - 4) in capsys.readouterr().out


def test_printable_is_one_line() -> None:
    assert console.printable("a\nb\x1b€\u202e") == "a\\nb\\x1b€\\u202e"
