"""`moejax decode --input --output`: every line is answered, once, whatever the others are."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import moejax
from moejax.bulk import run
from moejax.decoding.engine import DecodeRun
from tests.messages import error_line, says
from tests.moejax.cli.conftest import Call
from tests.moejax.decoding.tiny_checkpoint import Tiny

TOO_LARGE = "random:mixtral-8x7b"  # to be loaded: what is told of it is told before
PLAIN = {"prompt": "abc", "max_tokens": 4}


def openai(custom_id: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"max_tokens": 3, "temperature": 0, **body}}


CHAT = {"url": "/v1/chat/completions", "messages": [{"role": "user", "content": "hi"}]}


class Files:
    """The two files of a run."""

    def __init__(self, folder: Path, *lines: Mapping[str, Any] | str) -> None:
        self.input, self.output = folder / "in.jsonl", folder / "out.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        self.input.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")

    @property
    def flags(self) -> tuple[str | Path, ...]:
        return "--input", self.input, "--output", self.output, "--dtype", "float32"

    @property
    def answers(self) -> dict[str, dict[str, Any]]:
        found = [json.loads(line) for line in self.output.read_text(encoding="utf-8").splitlines()]
        by_id = {one["custom_id"]: one for one in found}
        assert len(by_id) == len(found)
        return by_id


def test_plain_lines_are_decoded_as_the_library_does(
    call: Call, tiny: Tiny, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "WINDOW", 2)
    ids = {"custom_id": "ids", "prompt": [5, 6, 7], "n": 2, "temperature": 1.0, "seed": 3, "logprobs": 1}
    files = Files(tmp_path, PLAIN, "", ids, {"prompt": "é", "max_tokens": 6}, {"prompt": "x"})
    done = call("decode", tiny_folder, *files.flags, "-n", "2")
    assert (done.status, done.out) == (0, ""), done.err
    says(done.err, "4 lines answered", "16 tokens")
    assert set(files.answers) == {"line-1", "ids", "line-4", "line-5"}
    params = moejax.SamplingParams(max_tokens=2, n=2, temperature=1.0, seed=3, logprobs=1)
    (expected,) = moejax.decode(tiny.model, [[5, 6, 7]], params)
    assert [one["token_ids"] for one in files.answers["ids"]["outputs"]] == [one.token_ids for one in expected.outputs]
    (text,) = moejax.decode(tiny.model, "é", max_tokens=6)
    assert files.answers["line-4"]["outputs"][0]["text"] == text.text
    assert files.answers["line-4"]["prompt"] == "é" and files.answers["line-4"]["error"] is None


def test_openai_lines_are_answered_as_the_server_does(
    call: Call, tiny: Tiny, tiny_folder: Path, tmp_path: Path
) -> None:
    files = Files(tmp_path, openai("a", prompt=["abc", "de"], logprobs=1, echo=True), openai("b", **CHAT), PLAIN)
    assert call("decode", tiny_folder, *files.flags, "--quiet").status == 0
    assert files.answers["a"]["error"] is None and files.answers["a"]["response"]["status_code"] == 200
    body = files.answers["a"]["response"]["body"]
    assert (body["object"], body["model"], len(body["choices"])) == ("text_completion", "tiny", 2)
    (second,) = moejax.decode(tiny.model, "de", max_tokens=3)
    assert [one["index"] for one in body["choices"]] == [0, 1]
    assert body["choices"][1]["text"] == "de" + second.text
    assert body["usage"]["completion_tokens"] == 6
    chat = files.answers["b"]["response"]["body"]
    assert chat["choices"][0]["message"]["role"] == "assistant"
    assert files.answers["line-3"]["outputs"]


def test_what_cannot_be_answered_is_told_in_its_line_and_the_run_goes_on(
    call: Call, tiny: Tiny, tiny_folder: Path, tmp_path: Path
) -> None:
    cases: list[tuple[Mapping[str, Any] | str, str, tuple[str, ...]]] = [
        ("{", "line-1", ("line 1",)),
        ("[1]", "line-2", ("line 2", "list")),
        ({"text": "x"}, "line-3", ("prompt",)),
        ({**PLAIN, "max_tokns": 3}, "line-4", ("'max_tokns'", "'max_tokens'")),
        ({"custom_id": "long", "prompt": "abc", "max_tokens": 5000}, "long", ("max_tokens=5000", "1024")),
        ({"custom_id": "half", "url": "/v1/completions"}, "half", ("method, body",)),
        (openai("other", prompt="x", model="gpt-9"), "other", ("'gpt-9'", "'tiny'")),
        (openai("where", url="/v1/embeddings", input="x"), "where", ("/v1/embeddings", "/v1/completions")),
        (openai("stream", prompt="x", stream=True), "stream", ("stream=true",)),
        (openai("field", prompt="x", temprature=1), "field", ("'temprature'", "temperature")),
    ]
    files = Files(tmp_path, *(line for line, *_ in cases), PLAIN)
    done = call("decode", tiny_folder, *files.flags)
    assert done.status == 1
    says(done.err, "10 of 11 lines failed")
    for _, name, facts in cases:
        answer = files.answers[name]
        says((answer["error"] or answer["response"]["body"]["error"])["message"], *facts)
    assert files.answers["line-11"]["error"] is None


def test_a_second_run_goes_on_behind_what_is_there(call: Call, tiny: Tiny, tiny_folder: Path, tmp_path: Path) -> None:
    files = Files(tmp_path, PLAIN, {"custom_id": "b", **PLAIN}, {"custom_id": "c", "prompt": []})
    assert call("decode", tiny_folder, *files.flags).status == 1
    lines = {json.loads(line)["custom_id"]: line for line in files.output.read_text().splitlines()}
    kept = lines["b"].replace('"error": null', '"error":  null')
    files.output.write_text(f"{kept}\n{lines['c']}\n{lines['line-1'][:40]}")
    done = call("decode", tiny_folder, *files.flags)
    assert done.status == 1
    says(done.err, "1 lines answered", "2 were there before", "1 of 3 lines failed", "1 of them", "delete")
    assert files.output.read_text().startswith(f"{kept}\n")
    assert files.answers["line-1"]["outputs"][0]["token_ids"]
    before = files.output.read_bytes()
    assert call("decode", tiny_folder, *files.flags).status == 1  # an error stays one
    assert files.output.read_bytes() == before
    files.output.write_text(before.decode().replace(f"{lines['c']}\n", ""))
    done = call("decode", tiny_folder, *files.flags)  # and is tried again where its line was deleted
    says(done.err, "1 lines answered", "1 of 3 lines failed")
    assert "of them" not in done.err and len(files.answers) == 3


def test_answers_to_another_question_are_refused_by_name(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    files = Files(tmp_path, {"custom_id": "a", **PLAIN}, openai("b", prompt="x"), PLAIN, {"prompt": []})
    assert call("decode", tiny_folder, *files.flags).status == 1
    written, asked = files.output.read_bytes(), files.input.read_text()

    def refused(checkpoint: str | Path = tiny_folder) -> str:
        done = call("decode", checkpoint, *files.flags)
        assert done.status == 2 and files.output.read_bytes() == written
        return done.err

    files.input.write_text(asked.replace('"prompt": "x"', '"prompt": "y"'))
    error_line(refused(), files.output, "'b'", "line 2", files.input, "delete", "--output")
    files.input.write_text(asked.replace('"prompt": []', '"prompt": [5]'))
    error_line(refused(), files.output, "'line-4'", "line 4")
    files.input.write_text(asked.replace('"max_tokens": 4', '"max_tokens": 5'))
    error_line(refused(), "edited", "1 more")
    files.input.write_text(asked)
    error_line(refused(TOO_LARGE), "model", f"'{tiny_folder.name}'", f"'{TOO_LARGE}'", "3 more")
    assert call("decode", tiny_folder, *files.flags).status == 1


def test_an_input_that_is_edited_meanwhile_ends_the_run(
    call: Call, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(tmp_path, PLAIN)
    answer_lines = run.answer_lines

    def edited(*args: Any, **named: Any) -> None:
        with files.input.open("a") as stream:
            stream.write('{"prompt": "new"}\n')
        answer_lines(*args, **named)

    monkeypatch.setattr(run, "answer_lines", edited)
    error_line(call("decode", tiny_folder, *files.flags, "--quiet").err, files.input, "line 2", "again")
    monkeypatch.undo()
    assert call("decode", tiny_folder, *files.flags).status == 0
    assert set(files.answers) == {"line-1", "line-2"}


def test_answers_under_other_flags_are_refused(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    files = Files(tmp_path, PLAIN)
    assert call("decode", tiny_folder, *files.flags, "--temperature", "1", "--seed", "1").status == 0
    for more in ([], ["--temperature", "1", "--seed", "2"], ["--temperature", "1", "--seed", "1", "--chat"]):
        error_line(call("decode", tiny_folder, *files.flags, *more).err, files.output, "'line-1'", "sampling flags")
    done = call("decode", tiny_folder, *files.flags, "--seed", "1", "--temperature", "1.0")
    assert done.status == 0 and len(files.answers) == 1
    files.output.write_bytes(2 * files.output.read_bytes())
    again = call("decode", tiny_folder, *files.flags, "--temperature", "1", "--seed", "1")
    error_line(again.err, "line 2", "second", "'line-1'")
    files.output.write_text('{"custom_id": "line-1", "outputs": [], "error": null}\n')
    error_line(call("decode", tiny_folder, *files.flags).err, "'line-1'", "does not say")


def test_lines_that_have_no_room_together_are_decoded_in_parts(
    call: Call, tiny: Tiny, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_fits(self: DecodeRun) -> None:
        if self.sequences > 1 or self.length > 512:
            raise ValueError("no room for the cache")

    monkeypatch.setattr(DecodeRun, "check_fits", check_fits)
    files = Files(tmp_path, PLAIN, {**PLAIN, "custom_id": "long", "max_tokens": 900}, {**PLAIN, "custom_id": "b"})
    assert call("decode", tiny_folder, *files.flags).status == 1
    says(files.answers["long"]["error"]["message"], "no room for the cache")
    assert files.answers["line-1"]["outputs"][0]["token_ids"] == files.answers["b"]["outputs"][0]["token_ids"]


def test_mistakes_are_told_before_anything_is_loaded(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    def refused(files: Files, *more: str | Path, checkpoint: str = "nowhere") -> str:
        return call("decode", checkpoint, *(more or files.flags)).err

    twice = Files(tmp_path, {**PLAIN, "custom_id": "a"}, openai("a", prompt="x"))
    error_line(refused(twice), twice.input, "lines 1 and 2", "'a'")
    error_line(refused(twice, "--input", twice.input), "--input", "--output")
    one = Files(tmp_path, openai("a", prompt="x"))
    error_line(refused(one, *one.flags, "--temperature", "1"), one.input, "line 1", "sampling flags")
    error_line(refused(one, *one.flags, "--prompt", "x"), "--prompt", "--input")
    error_line(refused(Files(tmp_path)), "no lines", '{"prompt": "TEXT"}')
    error_line(refused(one, "--input", tmp_path / "none", "--output", one.output), tmp_path / "none")


def test_an_output_that_cannot_be_written_is_told_before_anything_is_loaded(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(tmp_path, PLAIN)

    def refused(target: Path, *facts: object) -> None:
        done = call("decode", TOO_LARGE, "--input", files.input, "--output", target)
        assert done.status == 2
        error_line(done.err, target, *facts)

    refused(tmp_path, "folder", "--output")
    refused(tmp_path / "none" / "out", "no folder", tmp_path / "none")
    before = files.input.read_bytes()
    same = tmp_path / "same"
    same.symlink_to(files.input)
    for one in (files.input, same):
        refused(one, "input", files.input, "--output")
    assert files.input.read_bytes() == before
    monkeypatch.setattr("os.access", lambda *_: False)
    refused(files.output, "no file", tmp_path)
    assert not files.output.exists()


def test_an_output_of_something_else_is_left_alone(call: Call, tmp_path: Path) -> None:
    files = Files(tmp_path, PLAIN)
    for text, facts in (('{"custom_id": "x"}\n', ("line 1", "'x'", files.input)), ("notes\n", ("line 1",))):
        files.output.write_text(text)
        error_line(call("decode", TOO_LARGE, *files.flags, "--quiet").err, files.output, *facts)
        assert files.output.read_text() == text
    files.output.write_text("")
    with files.output.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        error_line(call("decode", TOO_LARGE, *files.flags, "--quiet").err, files.output, "another run")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_json_has_not_fail_alone(call: Call, tiny_folder: Path, tmp_path: Path, number: str) -> None:
    files = Files(tmp_path, f'{{"prompt": {number}}}', f'{{"prompt": [5, {number}]}}', PLAIN)
    assert call("decode", tiny_folder, *files.flags).status == 1
    assert [one["error"] is None for _, one in sorted(files.answers.items())] == [False, False, True]


def test_lone_surrogates_are_written_as_they_were(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    files = Files(tmp_path, {"custom_id": "\ud800", **PLAIN}, {"prompt": "\udfff"})
    for _ in range(2):  # the second run knows the answers of the first
        assert call("decode", tiny_folder, *files.flags).status == 1
        assert {name: one["prompt"] for name, one in files.answers.items()} == {"\ud800": "abc", "line-2": "\udfff"}


@pytest.mark.parametrize("link", [False, True])
def test_answers_never_go_into_the_input(call: Call, tiny_folder: Path, tmp_path: Path, link: bool) -> None:
    files = Files(tmp_path, {"custom_id": "a", **PLAIN})
    files.input.write_text(before := files.input.read_text() + '{"custom_id": "b", "prompt": "x"}')  # no end of line
    if link:
        files.output.symlink_to(files.input)
    else:
        files.output = files.input
    error_line(call("decode", tiny_folder, *files.flags).err, files.output.name, "input", "--output")
    assert files.input.read_text() == before


@pytest.mark.parametrize("text", ["notes without an end of line", '{"custom_id": 3', '{"id": "other'])
def test_only_half_an_answer_is_taken_off_the_output(call: Call, tiny_folder: Path, tmp_path: Path, text: str) -> None:
    files = Files(tmp_path, PLAIN)
    files.output.write_text(text)
    error_line(call("decode", tiny_folder, *files.flags).err, "line 1", "--output")
    assert files.output.read_text() == text


@pytest.mark.parametrize("which", ["input", "output"])
def test_pipes_are_refused(call: Call, tiny_folder: Path, tmp_path: Path, which: str) -> None:
    files = Files(tmp_path, PLAIN)
    setattr(files, which, tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe")
    error_line(call("decode", tiny_folder, *files.flags).err, "pipe", "regular file")
