"""Every mistake is one line on stderr and exit code 2."""

import io
import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from moejax.cli import prompts, startup
from moejax.cli.errors import describe, with_flags
from moejax.cli.foreign_flags import NOT_HERE, OURS, SERVING_NOT_HERE, SERVING_OURS
from moejax.cli.prompts import read_prompts
from moejax.decoding.failures import NonFiniteLogitsError
from tests.messages import error_line, refuses, says
from tests.moejax.cli.conftest import Call
from tests.moejax.decoding.tiny_checkpoint import Tiny

P = ("--prompt", "x")

# What is told before JAX starts: (arguments after `moejax`, the names and numbers in the message).
COMMANDS = "decode, serve, convert, verify, info, bench and mesh"
MISTAKES: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    # the command line itself
    (("server",), ("'server'", "'serve'", COMMANDS)),
    (("inf",), ("'inf'", "'info'", COMMANDS)),
    (("--foo",), ("--foo", "moejax --help")),
    (("decode",), ("moejax decode", "CHECKPOINT", "moejax decode --help")),
    (("verify",), ("moejax verify", "CHECKPOINT", "moejax verify --help")),
    (("info", "--mesh", "expert=2"), ("--mesh", "moejax info CHECKPOINT")),
    (
        ("decode", "demo", "A list is"),
        ("(A list is)", "--prompt", "moejax decode --help"),
    ),
    (("info", "demo", "x"), ("(x)", "moejax info --help")),
    (("decode", "demo", "--prompt"), ("'--prompt'",)),
    (("decode", "demo", *P, "--json=3"), ("'--json'",)),
    # unknown flags, with the nearest one
    (("decode", "demo", "--promt", "x"), ("moejax decode", "--promt", "--prompt")),
    (("decode", "demo", "--include"), ("moejax decode", "--include", "--include-stop-str-in-output")),
    (("decode", "demo", "--max_tokens=3"), ("moejax decode", "--max_tokens", "--max-tokens")),
    (("decode", "demo", "--zzzzz"), ("moejax decode", "--zzzzz", "moejax decode --help")),
    (("info", "demo", "--jsn"), ("moejax info", "--jsn", "--json")),
    (("info", "demo", "--temp", "1"), ("moejax info", "--temp", "moejax info --help")),
    # flags of other tools
    (("decode", "demo", *P, "--temp", "0.5"), ("moejax decode", "--temp", "--temperature")),
    (("decode", "demo", *P, "--max-model-len=99"), ("moejax decode", "--max-model-len", "--max-seq-len")),
    (("decode", "demo", *P, "--n_predict", "9"), ("moejax decode", "--n_predict", "--max-tokens")),
    (("decode", "demo", *P, "--max-length", "9"), ("moejax decode", "--max-length", "--max-tokens")),
    (("decode", "demo", "-p", "x"), ("moejax decode", "-p", "--prompt")),
    (
        ("decode", "demo", *P, "--tensor-parallel-size", "2"),
        ("moejax decode", "--tensor-parallel-size", "--mesh tensor=N"),
    ),
    # two values where there is one
    (("decode", "demo", *P, "-n", "3", "--max-tokens=5"), ("--max-tokens", "'3'", "'5'", "-n", "one flag", "once")),
    (("decode", "demo", *P, "--mesh", "expert=2", "--mesh", "data=2"), ("--mesh", "'expert=2'", "'data=2'", "once")),
    (("convert", "demo", "x", "--verify", "--no-verify"), ("--verify", "--verify and --no-verify", "once")),
    (("serve", "demo", "--port", "1", "--port", "2"), ("--port", "'1'", "'2'")),
    (("mesh", "show", "--model", "demo", "--model", "x", "--mesh", "expert=2"), ("--model", "'demo'", "'x'")),
    (("bench", "latency", "demo", "--dtype", "f32", "--dtype=bf16"), ("--dtype", "'f32'", "'bf16'")),
    # what other commands take without a flag
    (("mesh", "show", "demo"), ("--mesh MESH", "moejax mesh show --help")),
    (("mesh", "show", "demo", "tensor=2", "--mesh", "tensor=2"), ("(tensor=2)", "--mesh data=1,expert=4,tensor=2")),
    (("mesh", "compare", "demo"), ("--devices", "moejax mesh compare --help")),
    (("mesh", "compare", "--devices", "2", "--hardware", "cpu"), ("no model", "--model MODEL", "demo")),
    (("mesh", "show", "demo", "--model", "186m", "--mesh", "tensor=2"), ("one model", "demo", "--model 186m")),
    (("mesh", "show", "demo", "--mesh", "tensor=2", "--revision", "v1"), ("--revision v1", "demo")),
    (("bench", "latency", "demo", "--revision", "v1"), ("--revision v1", "demo")),
    (("bench", "throughput", "--random", "186m", "--revision", "v1"), ("--revision v1", "random:186m")),
    (("bench", "compare", "demo", "--revision", "v1"), ("--revision v1", "demo")),
    (("mesh", "show", "--model", "demo", "--mesh", "demo"), ("--mesh", "data=1,expert=4,tensor=2", "got 'demo'")),
    # values of the wrong kind, or out of range
    (("decode", "demo", *P, "--temperature", "hot"), ("--temperature", "got 'hot'")),
    (("decode", "demo", *P, "-n", "1.5"), ("--max-tokens", "got '1.5'")),
    (("decode", "demo", *P, "--stop-token-id", "a"), ("--stop-token-id", "got 'a'")),
    (("decode", "demo", *P, "--temperature", "-1"), ("--temperature", "0", "1e+30", "got -1.0")),
    (("decode", "demo", *P, "--top-p", "2"), ("--top-p", "0", "1", "got 2.0")),
    (("decode", "demo", *P, "-n", "0"), ("--max-tokens", "1", "got 0")),
    (
        ("decode", "demo", *P, "--n", "2"),
        ("--n 2", "temperature", "--n 1"),
    ),
    (
        ("decode", "demo", *P, "--min-tokens", "9", "-n", "8"),
        ("--min-tokens 9", "--max-tokens 8"),
    ),
    (
        ("decode", "demo", *P, "--stop", r"a\q"),
        ("--stop", "\\q in a\\q", "\\n \\t \\r \\xHH \\uHHHH"),
    ),
    # prompts
    (
        ("decode", "demo"),
        ('--prompt "TEXT"', "--prompt -", '--token-ids "0 17 42"'),
    ),
    (("decode", "demo", *P, "--prompt", ""), ("prompt 1", "--token-ids")),
    (
        ("decode", "demo", "--prompt", "-"),
        ("--prompt -", "standard input", "empty"),
    ),
    (
        ("decode", "demo", "--prompt", "-", "--prompt", "-"),
        ("--prompt -", "standard input", "once"),
    ),
    (("decode", "demo", "--prompt", "\udcff"), ("prompt 0", "UTF-8", "'\\udcff'", "iconv")),
    (("decode", "demo", "--token-ids", "1 -2"), ("--token-ids", '"0 17 42"', "got '1 -2'")),
    (("decode", "demo", "--token-ids", "[]"), ("--token-ids", '"0 17 42"', "got '[]'")),
    # flags that do not go together
    (("decode", "demo", *P, "--system", "y"), ("--system", "--chat")),
    (
        ("decode", "demo", "--token-ids", "1", "--chat"),
        ("--chat", "--token-ids"),
    ),
    (
        ("decode", "demo", *P, *P, "--stream"),
        ("--stream", "several prompts"),
    ),
    (
        ("decode", "demo", *P, "--json", "--stream"),
        ("--stream", "--json"),
    ),
    (
        ("decode", "demo", *P, "--model-seed", "1"),
        ("--model-seed", "random:NAME", "demo", "--seed"),
    ),
    # the checkpoint
    (
        ("decode", "nowhere", *P),
        ("nowhere", "'demo'", "'random:NAME'"),
    ),
    (("decode", "", *P), ("empty name", "'demo'")),
    (
        ("info", "mistralai/Mixtral-8x7B-v0.1"),
        ("no folder mistralai/Mixtral-8x7B-v0.1", "HF_HUB_OFFLINE"),
    ),
    (
        ("decode", "random:mixtral-8x7b", *P),
        ("--prompt", "random:mixtral-8x7b", "--token-ids"),
    ),
    (
        ("info", "random:mixtral-8x9b"),
        ("'mixtral-8x9b'", "mixtral-8x7b, mixtral-8x22b, 186m, 742m", "config.json", "'mixtral-8x7b'"),
    ),
    (
        ("decode", "demo", *P, "--chat"),
        ("chat_template.jinja", "tokenizer_config.json", "plain prompt"),
    ),
    (
        ("decode", "random:mixtral-8x9b", *P),
        ("'mixtral-8x9b'", "mixtral-8x7b, mixtral-8x22b, 186m, 742m", "config.json", "'mixtral-8x7b'"),
    ),
    # a request that this model cannot serve
    (
        ("decode", "demo", *P, "--max-seq-len", "9999"),
        ("--max-seq-len", "2 to 1024", "max_position_embeddings", "got 9999"),
    ),
    (
        ("decode", "demo", "--token-ids", "0 1", "-n", "1023"),
        ("prompt 0", "2 tokens", "--max-tokens 1023", "1024", "--max-seq-len", "--max-tokens 1022"),
    ),
    (
        ("decode", "demo", "--token-ids", "2048"),
        ("prompt 0", "token id 2048", "0 to 2047"),
    ),
    (
        ("decode", "demo", *P, "--stop-token-id", "2048"),
        ("--stop-token-id", "2048", "0 to 2047"),
    ),
    (("decode", "demo", *P, "--logprobs", "2049"), ("--logprobs 2049", "2048 tokens")),
    (
        ("decode", "random:mixtral-8x7b", "--token-ids", "1", "--stop", "x"),
        ("stop strings", "random:mixtral-8x7b", "--token-ids", "--stop-token-id"),
    ),
]
# What JAX has to be there for.
LATER: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("decode", "demo", *P, "--dtype", "fp8"), ("--dtype", "bfloat16", "float16", "float32", "auto", "'fp8'")),
    (("decode", "demo", *P, "--dtype", "half"), ("--dtype", "float16", "fp16", "'half'", "'float16'")),
    (
        ("decode", "demo", *P, "--expert-backend", "triton"),
        ("'triton'", "auto, dense, blocked, native, ragged, pallas, tokamax"),
    ),
]


@pytest.mark.parametrize(("arguments", "facts"), MISTAKES, ids=[ascii(" ".join(a)) for a, _ in MISTAKES])
def test_mistake_is_told_in_one_line_and_at_once(
    call: Call, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], facts: tuple[str, ...]
) -> None:
    def fail(**_: bool) -> None:
        raise AssertionError("JAX is started")

    monkeypatch.setattr(startup, "prepare_jax", fail)
    outcome = call(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    error_line(outcome.err, *facts)


@pytest.mark.parametrize(("arguments", "facts"), LATER, ids=[ascii(" ".join(a)) for a, _ in LATER])
def test_later_mistake_is_told_in_one_line(call: Call, arguments: tuple[str, ...], facts: tuple[str, ...]) -> None:
    outcome = call(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    error_line(outcome.err, *facts)


def test_stdin_that_is_no_text_is_refused(call: Call) -> None:
    outcome = call("decode", "demo", "--prompt", "-", stdin=b"ab\xff")
    error_line(outcome.err, "standard input", "UTF-8", "byte 2", "0xff", "iconv")
    assert outcome.status == 2


def test_text_without_a_tokenizer_is_refused_before_the_weights_are_read(
    call: Call, tiny: Tiny, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(dict(tiny.config)))
    (tmp_path / "model.safetensors").symlink_to(tiny_folder / "model.safetensors")
    outcome = call("decode", tmp_path, *P, "--dtype", "told later")
    assert outcome.status == 2
    error_line(outcome.err, "--prompt", tmp_path, "tokenizer.json", "token ids")


def test_damaged_checkpoint_is_told_as_the_library_tells_it(call: Call, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    outcome = call("info", tmp_path)
    error_line(outcome.err, f"{tmp_path}/config.json", "model_type", "'llama'", "'mixtral'")


def test_debug_adds_the_traceback(call: Call) -> None:
    outcome = call("decode", "nowhere", *P, "--debug")
    lines = outcome.err.splitlines()
    assert outcome.status == 2
    assert lines[0] == "Traceback (most recent call last):"
    says(lines[-1], "no folder nowhere")


def test_unexpected_errors_are_one_line_too() -> None:
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile trying to allocate\n")
    says(describe(error), "RuntimeError", "RESOURCE_EXHAUSTED", "Out of memory", "--debug")
    assert "\n" not in describe(error)
    says(describe(AssertionError()), "AssertionError", "--debug")
    not_finite = NonFiniteLogitsError(index=0, tokens=3, dtype="float16")
    says(describe(not_finite), "prompt 0", "3", "float16", "--dtype bfloat16")
    assert describe(FileNotFoundError(2, "No such file", "a.json")) == "a.json: No such file"
    gloo = RuntimeError("UNKNOWN: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer [127.0.0.1]:725")
    says(describe(gloo), "another process")


def test_terminal_codes_in_a_path_are_escaped(call: Call) -> None:
    outcome = call("info", "a\x1b[31m\nb")
    error_line(outcome.err, "a\\x1b[31m b")


@pytest.mark.parametrize(
    ("argument", "flag"),
    [
        ("use max_tokens=9 or less", "use --max-tokens 9 or less"),
        ("past the limit (max_seq_len): stop", "past the limit (--max-seq-len): stop"),
        ("n=3 outputs, or n=1", "--n 3 outputs, or --n 1"),
        ("seed must be a number", "--seed must be a number"),
        ("one stop string, n outputs, a seed", "one stop string, n outputs, a seed"),
        ("stop_token_ids: 9", "--stop-token-id: 9"),
        ("or dtype=bfloat16", "or --dtype bfloat16"),
    ],
)
def test_names_of_arguments_become_flags(argument: str, flag: str) -> None:
    assert with_flags(argument) == flag


def test_flags_of_other_tools_are_answered_with_flags_that_exist(call: Call) -> None:
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", call("decode", "--help").out))
    assert {"--prompt", "-n", "--no-stream"} <= known
    assert set(OURS.values()) <= known
    assert known.isdisjoint(OURS.keys() | NOT_HERE.keys())
    assert OURS.keys().isdisjoint(NOT_HERE)


def test_flags_of_vllm_are_answered_by_serve(call: Call) -> None:
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", call("serve", "--help").out))
    assert {"--served-model-name", "--max-num-seqs", "--max-model-len"} <= known
    assert set(SERVING_OURS.values()) <= known
    assert known.isdisjoint(SERVING_OURS.keys() | SERVING_NOT_HERE.keys())
    error_line(call("serve", "demo", "--tensor-parallel-size", "2").err, "--tensor-parallel-size", "--mesh tensor=N")
    error_line(call("decode", "demo", "--served-model-name", "x").err, "--served-model-name", "moejax serve")


@pytest.mark.parametrize("text", ["@@x", "@{file}", "@-", "-"])
def test_a_prompt_may_be_in_a_file(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes").write_text("one\ntwo\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    expected = "@x" if text == "@@x" else "one\ntwo"
    assert read_prompts([text.format(file=tmp_path / "notes")], []) == [expected]


def test_an_empty_stop_is_told_by_its_flag(call: Call) -> None:
    error_line(call("decode", "demo", "--prompt", "x", "--stop", "").err, "--stop", "empty")


def test_a_file_without_an_end_is_not_read_to_it(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MOST_BYTES", 1000)
    error_line(call("decode", "demo", "--prompt", "@/dev/zero").err, "--prompt @/dev/zero", "1,000 bytes")
    for given, refused in (b"x" * 1000, False), (b"x" * 1001, True):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        with refuses(ValueError, "--prompt -", "1,000 bytes") if refused else nullcontext():
            assert read_prompts(["-"], []) == [given.decode()]


def test_files_that_are_no_prompt(call: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "latin").write_bytes(b"\xe9")
    (tmp_path / "folder").mkdir()
    cases = {"none": ("No such file", "@@"), "empty": ("empty",), "latin": ("UTF-8", "0xe9"), "folder": ("directory",)}
    for name, facts in cases.items():
        error_line(call("decode", "demo", "--prompt", f"@{tmp_path / name}").err, tmp_path / name, *facts)
    error_line(call("decode", "demo", "--prompt", "@~no-such-user/x").err, "--prompt", "'~no-such-user/x'", "home")
    error_line(call("decode", "demo", "--prompt", "-", "--prompt", "@-").err, "standard input", "once")
