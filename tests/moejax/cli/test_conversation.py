"""`moejax decode --chat` without a prompt: what was said is kept, line by line."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import moejax
from moejax.cli.conversation import Talk, respond
from tests.messages import error_line, refuses, says
from tests.moejax.cli.conftest import Call
from tests.moejax.decoding.tiny_checkpoint import Tiny

F32 = ("--dtype", "float32")  # as `tiny` is loaded
SYSTEM = {"role": "system", "content": "be a list"}

# As a terminal's own process group, with an answer that nothing but Ctrl-C ends: to a message "long".
PROGRAM = """
import dataclasses, fcntl, itertools, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
import moejax
from moejax.cli import main
decode = moejax.decode
def endless(model, prompts, params, *, stream):
    text = model.tokenizer.decode(prompts[0])
    print("PROMPT", repr(text), flush=True)
    events = decode(model, prompts, params, stream=stream)
    if text.endswith("[user]long[assistant]"):
        event = next(events)
        yield from [event] * 40  # the context has room for what follows
        yield from itertools.repeat(dataclasses.replace(event, text=""))
    yield from events
moejax.decode = endless
main()
"""


@pytest.fixture(scope="module")
def model(tiny: Tiny, tiny_folder: Path) -> moejax.Model:
    """The model in `tiny_folder` with its chat template, which `tiny` was loaded without."""
    return moejax.load(tiny_folder, dtype="float32")


def answered(model: moejax.Model, *said: str, system: bool = False, max_tokens: int = 3) -> list[dict[str, str]]:
    """The conversation of these messages, as the library has it."""
    messages = [SYSTEM] if system else []
    for one in said:
        messages.append({"role": "user", "content": one})
        (result,) = moejax.decode(model, moejax.encode_chat(model, messages), max_tokens=max_tokens)
        messages.append({"role": "assistant", "content": result.text})
    return messages


def answers(messages: list[dict[str, str]]) -> str:
    return "".join(f"{one['content']}\n" for one in messages if one["role"] == "assistant")


def talk_of(model: moejax.Model, max_tokens: int, *, ignore_eos: bool = False) -> Talk:
    params = moejax.SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos)
    return Talk(model=model, params=params, system=None, quiet=False)


def test_piped_lines_are_turns(call: Call, model: moejax.Model, tiny_folder: Path) -> None:
    flags = ("decode", tiny_folder, "--chat", "--system", "be a list", "-n", "3", *F32)
    done = call(*flags, stdin="hé\n\nand?\n/reset\nhé\n/exit\nnever\n".encode())
    assert done.status == 0, done.err
    first, second = answered(model, "hé", "and?", system=True), answered(model, "hé", system=True)
    assert done.out == answers(first) + answers(second)


def test_the_same_shapes_are_compiled_once(model: moejax.Model) -> None:
    talk = talk_of(model, 3)
    respond(talk, "a", lambda: False)
    before = model.programs.compiled
    for line in ("/reset", "b", "/reset", "cd"):
        assert respond(talk, line, lambda: False)
    assert model.programs.compiled == before


def test_an_answer_that_is_ended_is_kept_as_far_as_it_came(
    model: moejax.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = answered(model, "hi", max_tokens=20)[1]["content"]
    talk, asked = talk_of(model, 20), iter([False, False, True])
    assert respond(talk, "hi", lambda: next(asked))
    part = capsys.readouterr().out.removesuffix("\n")
    assert whole.startswith(part) and len(part) < len(whole)
    assert talk.said == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": part}]


def test_a_full_context_is_told(model: moejax.Model, capsys: pytest.CaptureFixture[str]) -> None:
    talk, limit = talk_of(model, 100, ignore_eos=True), model.max_seq_len
    prompt = len(moejax.encode_chat(model, [{"role": "user", "content": ""}]))
    respond(talk, "x" * (limit - prompt - 3), lambda: False)
    says(capsys.readouterr().err, f"{limit:,}", "/reset")
    said = list(talk.said)
    with refuses(ValueError, "full", f"{limit:,}", "/reset"):
        respond(talk, "more", lambda: False)
    assert talk.said == said
    respond(talk, "/reset", lambda: False)
    assert respond(talk, "more", lambda: False)
    says(capsys.readouterr().err, "--max-tokens", 100)


def test_what_a_conversation_cannot_be_is_told_before_the_model_is_read(
    call: Call, tiny: Tiny, tiny_folder: Path
) -> None:
    def refused(*flags: str, stdin: bytes = b"hi\n") -> str:
        done = call("decode", tiny_folder, "--chat", *flags, stdin=stdin)
        assert (done.status, done.out) == (2, "")
        return done.err

    for flag in (
        ["--json"],
        ["--no-stream"],
        ["--n", "2", "--temperature", "1"],
        ["--logprobs", "1"],
        ["--save-expert-load", "x"],
    ):
        error_line(refused(*flag), "--chat", flag[0], "--prompt")
    error_line(refused(stdin=b"\n"), "standard input", "--prompt")
    error_line(refused("-n", "5000"), 5000, 1024)
    error_line(refused(stdin=b"\xff\n"), "0xff")
    assert "/quit" in refused("--quiet", stdin=b"/quit\n")


@dataclass
class Terminal:
    """The far end of a terminal on which a conversation runs."""

    process: subprocess.Popen[bytes]
    end: int
    seen: str = ""

    def wait_for(self, pattern: str) -> str:
        """Reads up to a pattern, and returns what was read up to its end."""
        while not (found := re.search(pattern, self.seen)):
            data = os.read(self.end, 4096)
            self.seen += data.decode("utf-8", "replace")
        read, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return read

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def interrupt_typing(self) -> None:
        """Ctrl-C, once the process sleeps: Python sees one that comes just before only with the next key."""
        status = Path(f"/proc/{self.process.pid}/stat")
        while status.read_text().rpartition(") ")[2][0] == "R":
            os.sched_yield()
        self.type("\x03")


@pytest.fixture
def terminal(tiny: Tiny, tiny_folder: Path) -> Iterator[Terminal]:
    end, far = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "decode", tiny_folder, "--chat", "-n", "3", *F32],
        stdin=far,
        stdout=far,
        stderr=far,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(far)
    try:
        yield Terminal(process=process, end=end)
    finally:
        process.kill()
        process.wait()
        os.close(end)


def test_on_a_terminal_ctrl_c_ends_an_answer_and_then_the_command(terminal: Terminal) -> None:
    says(terminal.wait_for(r"\n[^\n]*> "), *("/exit", "/reset", "/help"))
    terminal.type("/help\n")
    says(terminal.wait_for(r"Ctrl-C.*\n[^\n]*> "), "/exit", "/reset")
    terminal.type("long\n")
    terminal.wait_for(r"PROMPT '.*\[user\]long\[assistant\]'\r\n[^\n]{30}")  # it goes on and on
    terminal.type("\x03")
    terminal.wait_for(r"\n[^\n]*> ")
    terminal.type("hi\n")
    prompt = terminal.wait_for(r"PROMPT .*\[user\]hi\[assistant\]'\r\n")
    assert re.search(r"\[user\]long\[assistant\].{20,}\[user\]hi\[assistant\]", prompt)
    terminal.wait_for(r"\n> ")
    terminal.type("/none\n")
    says(terminal.wait_for(r"error: .*\n[^\n]*> "), "/none", "/exit")
    terminal.type("half a line")
    terminal.wait_for("half a line")  # read: Ctrl-C throws away what waits to be
    terminal.interrupt_typing()
    terminal.wait_for(r"\n[^\n]*> ")
    terminal.interrupt_typing()
    assert terminal.process.wait(timeout=300) == 130


@pytest.mark.parametrize("last", ["\x04", "/exit\n"])
def test_on_a_terminal_the_last_line_ends_it(terminal: Terminal, last: str) -> None:
    terminal.wait_for(r"\n[^\n]*> ")
    terminal.type(last)
    assert terminal.process.wait(timeout=300) == 0
