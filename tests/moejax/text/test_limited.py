"""Tokenizers and templates that panic, crash, grow or never finish: an error, and the program goes on."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from moejax._convert.errors import CheckpointError
from moejax.text import limited
from moejax.text.chat import render_chat
from moejax.text.limited import Limited, LimitReached
from moejax.text.tokenizer import Tokenizer
from tests.messages import refuses
from tests.tokenizer_models import byte_level, loaded, save

CHAT = [{"role": "user", "content": "hello"}]


def words(change: Callable[[tokenizers.Tokenizer], None]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    change(backend)
    return backend


def grows(backend: tokenizers.Tokenizer) -> None:
    backend.normalizer = normalizers.Sequence([normalizers.Replace("b", "bbbbbbbbbb")] * 12)


def backtracks(backend: tokenizers.Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("(b+b+)+c"), "isolated")


def cuts(backend: tokenizers.Tokenizer) -> None:
    backend.decoder = decoders.Strip(" ", 3, 3)


def load(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer is not None
    return tokenizer


def test_tokenizer_that_grows_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moejax.text.tokenizer._ENCODE_SECONDS", 1)
    tokenizer = load(save(tmp_path, words(grows)))
    with refuses(ValueError, "cannot encode"):
        tokenizer.encode("b" * 10)
    assert tokenizer.encode("a") == [2]


def test_tokenizer_that_panics_for_a_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = load(save(tmp_path, words(backtracks)))
    with refuses(ValueError, "cannot encode", "retry-limit"):
        tokenizer.encode("b" * 60)
    assert tokenizer.encode("a") == [2]
    assert capfd.readouterr().err == ""  # no backtrace of Rust's


def test_tokenizer_that_panics_when_it_is_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, words(cuts)) / "tokenizer.json"
    with refuses(CheckpointError, path, "out of bounds"):
        load(tmp_path)
    assert capfd.readouterr().err == ""


def test_interrupted_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is ended, so that its answer is not taken for that to the next question."""
    tokenizer = loaded(byte_level())
    tokenizer.encode("a")
    process = limited._idle[-1]

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(limited._Process, "_received", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tokenizer.encode("list")
    assert process not in limited._alive
    assert tokenizer.decode(tokenizer.encode("the")) == "the"


# --- processes ---


def test_processes_are_kept_and_few() -> None:
    templates = [f"{n} {{{{ messages[0].content }}}}" for n in range(3 * limited.MOST_IDLE)]
    assert [render_chat(template, CHAT, named={})[-5:] for template in templates] == ["hello"] * len(templates)
    kept = list(limited._idle)
    assert len(limited._alive) == len(kept) == limited.MOST_IDLE
    assert render_chat(templates[-1], CHAT, named={}) == f"{len(templates) - 1} hello"
    assert limited._idle == kept


def test_many_at_once() -> None:
    answers: list[str] = []
    template = "{{ messages[0].content }}{% for i in range(20000) %}{% endfor %}"

    def ask(n: int) -> None:
        answers.append(render_chat(template, [{"role": "user", "content": str(n)}], named={}))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(3 * limited.MOST_AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, answers)) == list(range(len(threads)))
    assert len(limited._alive) <= limited.MOST_IDLE


def test_process_that_was_killed() -> None:
    """By whoever looks for memory, while it was idle."""
    template = "{{ messages[0].content }} again"
    assert render_chat(template, CHAT, named={}) == "hello again"
    process = limited._idle[-1]
    process._process.kill()
    process._process.wait()
    assert render_chat(template, CHAT, named={}) == "hello again"
    assert process not in limited._alive


def test_task_that_cannot_be_prepared_in_its_memory() -> None:
    setup = {"template": "{% set x = 'a' * 10 %}"}
    with refuses(LimitReached, "MB"):
        Limited(task="template", setup=setup, seconds=5, memory=1 << 20).describe()


def test_limits_are_within_those_of_the_program() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
        "from moejax.text.limited import Limited;"
        "setup = {'template': '{{ x }}'};"
        "ask = Limited(task='template', setup=setup, seconds=9, memory=2 << 30).ask; print(ask({'x': 'a'}, seconds=9))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "a\n"


PROGRAM = """
import os, sys
from moejax.text.chat import render_chat
from moejax.text import limited
def say(text):
    return render_chat("{{ messages[0].content }}", [{"role": "user", "content": text}], named={})
print(say("parent"), flush=True)
pid = limited._idle[-1]._process.pid
child = os.fork()
if child == 0:
    print(say("child"), flush=True)
    sys.exit()
os.waitpid(child, 0)
print(say("parent again"), limited._idle[-1]._process.pid == pid, pid, flush=True)
"""


def test_forked_child_has_processes_of_its_own_and_none_is_left() -> None:
    run = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, check=True)
    *lines, last = run.stdout.splitlines()
    assert lines == ["parent", "child"] and last.startswith("parent again True ")
    assert run.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(last.split()[-1]), 0)


@pytest.mark.parametrize("prompt", [["--prompt", "b" * 60], ["--token-ids", "2"]])
def test_command_line_says_one_line(tmp_path: Path, prompt: list[str]) -> None:
    """Not even what a library prints about its own panic."""
    folder = tmp_path / "model"
    source = Path(limited.__file__).parents[1] / "checkpoints" / "demo"
    folder.mkdir()
    for file in source.iterdir():
        if not file.name.startswith("tokenizer"):
            (folder / file.name).symlink_to(file)
    save(folder, words(backtracks if "--prompt" in prompt else cuts))
    command = [sys.executable, "-m", "moejax", "decode", str(folder), *prompt, "--max-tokens", "1"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert ("retry-limit" if "--prompt" in prompt else "out of bounds") in run.stderr
