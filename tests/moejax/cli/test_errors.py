"""Every mistake is one line on stderr and exit code 2."""

import json
import re
from pathlib import Path

import pytest

from moejax.cli import startup
from moejax.cli.errors import describe, with_flags
from moejax.cli.foreign_flags import NOT_HERE, OURS
from tests.moejax.cli.conftest import Call
from tests.moejax.decoding.tiny_checkpoint import Tiny

P = ("--prompt", "x")

# What is told before JAX starts: (arguments after `moejax`, the whole message).
COMMANDS = "decode, serve, convert, verify, info, bench and mesh"
MISTAKES: list[tuple[tuple[str, ...], str]] = [
    # the command line itself
    (("server",), f"no such command 'server'; did you mean 'serve'? The commands are {COMMANDS}"),
    (("inf",), f"no such command 'inf'; did you mean 'info'? The commands are {COMMANDS}"),
    (("--foo",), "moejax has no --foo; see moejax --help"),
    (("decode",), "moejax decode needs a CHECKPOINT; see moejax decode --help"),
    (("info",), "moejax info needs a CHECKPOINT; see moejax info --help"),
    (
        ("decode", "demo", "A list is"),
        'got unexpected extra argument(s) (A list is): prompts are given with --prompt "TEXT"; see moejax decode '
        "--help",
    ),
    (("info", "demo", "x"), "got unexpected extra argument(s) (x); see moejax info --help"),
    (("decode", "demo", "--prompt"), "option '--prompt' requires an argument"),
    (("decode", "demo", *P, "--json=3"), "option '--json' does not take a value"),
    # unknown flags, with the nearest one
    (("decode", "demo", "--promt", "x"), "moejax decode has no --promt; did you mean --prompt?"),
    (("decode", "demo", "--include"), "moejax decode has no --include; did you mean --include-stop-str-in-output?"),
    (("decode", "demo", "--max_tokens=3"), "moejax decode has no --max_tokens; use --max-tokens"),
    (("decode", "demo", "--zzzzz"), "moejax decode has no --zzzzz; see moejax decode --help"),
    (("info", "demo", "--jsn"), "moejax info has no --jsn; did you mean --json?"),
    (("info", "demo", "--temp", "1"), "moejax info has no --temp; see moejax info --help"),
    # flags of other tools
    (("decode", "demo", *P, "--temp", "0.5"), "moejax decode has no --temp; use --temperature"),
    (("decode", "demo", *P, "--max-model-len=99"), "moejax decode has no --max-model-len; use --max-seq-len"),
    (("decode", "demo", *P, "--n_predict", "9"), "moejax decode has no --n_predict; use --max-tokens"),
    (("decode", "demo", *P, "--max-length", "9"), "moejax decode has no --max-length; use --max-tokens"),
    (("decode", "demo", "-p", "x"), "moejax decode has no -p; use --prompt"),
    (
        ("decode", "demo", *P, "--tensor-parallel-size", "2"),
        "moejax decode has no --tensor-parallel-size: a mesh says it: --mesh tensor=N",
    ),
    # values of the wrong kind, or out of range
    (("decode", "demo", *P, "--temperature", "hot"), "--temperature must be a number, got 'hot'"),
    (("decode", "demo", *P, "-n", "1.5"), "--max-tokens must be a whole number, got '1.5'"),
    (("decode", "demo", *P, "--stop-token-id", "a"), "--stop-token-id must be a whole number, got 'a'"),
    (("decode", "demo", *P, "--temperature", "-1"), "--temperature must be a number from 0 to 1e+30, got -1.0"),
    (("decode", "demo", *P, "--top-p", "2"), "--top-p must be a number from 0 to 1, got 2.0"),
    (("decode", "demo", *P, "-n", "0"), "--max-tokens must be a whole number at least 1, got 0"),
    (
        ("decode", "demo", *P, "--n", "2"),
        "--n 2 greedy outputs would all be the same: set a temperature above 0, or --n 1",
    ),
    (
        ("decode", "demo", *P, "--min-tokens", "9", "-n", "8"),
        "--min-tokens 9 is more than --max-tokens 8",
    ),
    (
        ("decode", "demo", *P, "--stop", r"a\q"),
        r"--stop has an unknown escape \q in a\q; known are \n \t \r \xHH \uHHHH, and \\ for a backslash",
    ),
    # prompts
    (
        ("decode", "demo"),
        'there is no prompt; give --prompt "TEXT", --prompt - for standard input, or --token-ids "0 17 42"',
    ),
    (("decode", "demo", *P, "--prompt", ""), "prompt 1 is empty: give at least one character, or --token-ids"),
    (
        ("decode", "demo", "--prompt", "-"),
        "--prompt - reads standard input, which is empty; pipe the prompt's text into it",
    ),
    (
        ("decode", "demo", "--prompt", "-", "--prompt", "-"),
        "--prompt - reads standard input, which can only be read once; give it once",
    ),
    (("decode", "demo", "--prompt", "\udcff"), "prompt 0 is not UTF-8 text ('\\udcff'); convert it with iconv"),
    (("decode", "demo", "--token-ids", "1 -2"), "--token-ids must be token ids, as in \"0 17 42\", got '1 -2'"),
    (("decode", "demo", "--token-ids", "[]"), "--token-ids must be token ids, as in \"0 17 42\", got '[]'"),
    # flags that do not go together
    (("decode", "demo", *P, "--system", "y"), "--system is a message of a chat; add --chat"),
    (
        ("decode", "demo", "--token-ids", "1", "--chat"),
        "--chat puts text into a template; it cannot be used with --token-ids",
    ),
    (
        ("decode", "demo", *P, *P, "--stream"),
        "--stream prints one text while it is generated; it cannot be used with several prompts",
    ),
    (
        ("decode", "demo", *P, "--json", "--stream"),
        "--stream prints one text while it is generated; it cannot be used with --json",
    ),
    (
        ("decode", "demo", *P, "--model-seed", "1"),
        "--model-seed is for random:NAME, but demo has weights of its own; to sample, use --seed",
    ),
    # the checkpoint
    (
        ("decode", "nowhere", *P),
        "there is no folder nowhere; give 'demo', the folder of a Hugging Face checkpoint or of a converted one, or, "
        "where a model is loaded, 'random:NAME' for random weights",
    ),
    (("decode", "", *P), "got an empty name; give 'demo', or the folder of a Hugging Face checkpoint"),
    (
        ("info", "mistralai/Mixtral-8x7B-v0.1"),
        "there is no folder mistralai/Mixtral-8x7B-v0.1 here, and moejax downloads nothing by itself; run: hf download "
        "mistralai/Mixtral-8x7B-v0.1 --exclude 'consolidated*' --local-dir Mixtral-8x7B-v0.1",
    ),
    (
        ("decode", "random:mixtral-8x7b", *P),
        "--prompt is text, but random:mixtral-8x7b has random weights and no tokenizer: use --token-ids",
    ),
    (
        ("info", "random:mixtral-8x9b"),
        "unknown model 'mixtral-8x9b': the known names are mixtral-8x7b, mixtral-8x22b, 186m, 742m, or the path of "
        "a config.json; did you mean 'mixtral-8x7b'?",
    ),
    (
        ("decode", "demo", *P, "--chat"),
        "this checkpoint has no chat template (neither chat_template.jinja nor chat_template in "
        "tokenizer_config.json), so it is probably no chat model: give the text as a plain prompt",
    ),
    (
        ("decode", "random:mixtral-8x9b", *P),
        "unknown model 'mixtral-8x9b': the known names are mixtral-8x7b, mixtral-8x22b, 186m, 742m, or the path of "
        "a config.json; did you mean 'mixtral-8x7b'?",
    ),
    # a request that this model cannot serve
    (
        ("decode", "demo", *P, "--max-seq-len", "9999"),
        "--max-seq-len must be from 2 to 1024 (the model's max_position_embeddings), got 9999",
    ),
    (
        ("decode", "demo", "--token-ids", "0 1", "-n", "1023"),
        "prompt 0 has 2 tokens, and with --max-tokens 1023 that is past the limit of 1024 (--max-seq-len): use "
        "--max-tokens 1022 or less",
    ),
    (
        ("decode", "demo", "--token-ids", "2048"),
        "prompt 0: token id 2048 is out of range, this model's ids are 0 to 2047",
    ),
    (
        ("decode", "demo", *P, "--stop-token-id", "2048"),
        "--stop-token-id: 2048 is out of range, this model's ids are 0 to 2047",
    ),
    (("decode", "demo", *P, "--logprobs", "2049"), "--logprobs 2049 is more than the 2048 tokens of this model"),
    (
        ("decode", "random:mixtral-8x7b", "--token-ids", "1", "--stop", "x"),
        "stop strings need a tokenizer, but random:mixtral-8x7b has random weights and no tokenizer: use --token-ids; "
        "or use --stop-token-id",
    ),
]
# What JAX has to be there for.
LATER: list[tuple[tuple[str, ...], str]] = [
    (("decode", "demo", *P, "--dtype", "fp8"), "unknown dtype 'fp8': use bfloat16, float16, float32 or auto"),
    (
        ("decode", "demo", *P, "--expert-backend", "triton"),
        "unknown expert backend 'triton'; the known ones are auto, dense, blocked, native, ragged, pallas, tokamax",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[ascii(" ".join(a)) for a, _ in MISTAKES])
def test_mistake_is_told_in_one_line_and_at_once(
    call: Call, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    def fail(**_: bool) -> None:
        raise AssertionError("JAX is started")

    monkeypatch.setattr(startup, "prepare_jax", fail)
    outcome = call(*arguments)
    assert (outcome.status, outcome.out, outcome.err) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(("arguments", "message"), LATER, ids=[ascii(" ".join(a)) for a, _ in LATER])
def test_later_mistake_is_told_in_one_line(call: Call, arguments: tuple[str, ...], message: str) -> None:
    outcome = call(*arguments)
    assert (outcome.status, outcome.out, outcome.err) == (2, "", f"error: {message}\n")


def test_stdin_that_is_no_text_is_refused(call: Call) -> None:
    outcome = call("decode", "demo", "--prompt", "-", stdin=b"ab\xff")
    assert outcome.err == "error: standard input is not UTF-8 text (byte 2 is 0xff); convert it with iconv\n"
    assert outcome.status == 2


def test_text_without_a_tokenizer_is_refused_before_the_weights_are_read(
    call: Call, tiny: Tiny, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(dict(tiny.config)))
    (tmp_path / "model.safetensors").symlink_to(tiny_folder / "model.safetensors")
    outcome = call("decode", tmp_path, *P, "--dtype", "told later")
    assert outcome.status == 2
    assert outcome.err == (
        f"error: --prompt is text, but {tmp_path} has no tokenizer.json: give token ids instead of text, or add the "
        "tokenizer.json of this model\n"
    )


def test_damaged_checkpoint_is_told_as_the_library_tells_it(call: Call, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    outcome = call("info", tmp_path)
    assert (
        outcome.err == f"error: {tmp_path}/config.json: model_type is 'llama'; moejax decodes 'mixtral' models only\n"
    )


def test_debug_adds_the_traceback(call: Call) -> None:
    outcome = call("decode", "nowhere", *P, "--debug")
    lines = outcome.err.splitlines()
    assert outcome.status == 2
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("error: there is no folder nowhere")


def test_unexpected_errors_are_one_line_too() -> None:
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile trying to allocate\n")
    expected = "RuntimeError: RESOURCE_EXHAUSTED: Out of memory; run it again with --debug to see where"
    assert describe(error) == expected
    assert describe(AssertionError()) == "AssertionError: no message; run it again with --debug to see where"
    assert describe(FileNotFoundError(2, "No such file", "a.json")) == "a.json: No such file"
    gloo = RuntimeError("UNKNOWN: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer [127.0.0.1]:725")
    assert describe(gloo).startswith("another process of this run ended, or cannot be reached any more: ")


def test_terminal_codes_in_a_path_are_escaped(call: Call) -> None:
    outcome = call("info", "a\x1b[31m\nb")
    assert outcome.err.startswith("error: there is no folder a\\x1b[31m b; give")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("use max_tokens=9 or less", "use --max-tokens 9 or less"),
        ("past the limit (max_seq_len): stop", "past the limit (--max-seq-len): stop"),
        ("n=3 outputs, or n=1", "--n 3 outputs, or --n 1"),
        ("seed must be a whole number", "--seed must be a whole number"),
        ("give one stop string, n outputs, a seed", "give one stop string, n outputs, a seed"),
        ("stop_token_ids: 9 is out of range", "--stop-token-id: 9 is out of range"),
        ("or dtype=bfloat16", "or --dtype bfloat16"),
    ],
)
def test_names_of_arguments_become_flags(message: str, expected: str) -> None:
    assert with_flags(message) == expected


def test_flags_of_other_tools_are_answered_with_flags_that_exist(call: Call) -> None:
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", call("decode", "--help").out))
    assert {"--prompt", "-n", "--no-stream"} <= known
    assert set(OURS.values()) <= known
    assert known.isdisjoint(OURS.keys() | NOT_HERE.keys())
    assert OURS.keys().isdisjoint(NOT_HERE)
