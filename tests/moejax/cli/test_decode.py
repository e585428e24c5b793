"""`moejax decode` prints what `moejax.decode` returns."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moejax
from moejax._sharding import MeshConfig
from moejax.cli import output
from moejax.moe.split import Split
from moejax.runtime.platform import Device
from moejax.text.chat import encode_chat
from tests.messages import error_line, says
from tests.moejax.cli.conftest import Call
from tests.moejax.decoding.tiny_checkpoint import Tiny

PROMPT = "the import statement"
F32 = ("--dtype", "float32")  # as `tiny` is loaded
STATISTICS = re.compile(
    r"prompt 7 tokens \| generated 12 \(length\)\n"
    r"first token \d+\.\d{3} s \| decode [\d,]+\.\d tokens/s \| compile \d+\.\d s \| load \d+\.\d s\n"
    r"weights [\d.]+ kB, (\d+%|none) in huge pages( \(.+\))?\n"
)


def expected(tiny: Tiny, prompts: Any = PROMPT, **params: Any) -> list[moejax.DecodeResult]:
    return moejax.decode(tiny.model, prompts, **{"max_tokens": 12, **params})


def plain(value: Any) -> Any:
    """A result as JSON holds it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
    """Without what no two runs have in common."""
    kept = {name: value for name, value in result["stats"].items() if "second" not in name}
    return {**result, "stats": kept}


@pytest.mark.parametrize("flag", ["--stream", "--no-stream", None])
def test_text_is_the_librarys(call: Call, tiny: Tiny, tiny_folder: Path, flag: str | None) -> None:
    outcome = call("decode", tiny_folder, "--prompt", PROMPT, "-n", "12", *F32, *([flag] if flag else []))
    assert outcome.status == 0
    assert outcome.out == expected(tiny)[0].text + "\n"
    assert STATISTICS.fullmatch(outcome.err)


def test_memory_is_said_of_a_cpu_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    assert output.memory(tiny.model, quiet=False)
    assert output.memory(tiny.model, quiet=True) is None
    monkeypatch.setattr(moejax.Model, "devices", [Device(platform="gpu", kind="test device")])
    assert output.memory(tiny.model, quiet=False) is None


def test_every_flag_reaches_the_library(
    call: Call, tiny_folder: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = moejax.SamplingParams(
        max_tokens=9,
        min_tokens=2,
        temperature=0.5,
        top_k=3,
        top_p=0.75,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=-1,
        frequency_penalty=1,
        logit_bias={7: 2.5},
        seed=4,
        n=2,
        stop=("a", "b"),
        stop_token_ids=(5, 6),
        ignore_eos=True,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        logprobs=0,
        prompt_logprobs=1,
        return_routed_experts=True,
    )
    values = dataclasses.asdict(params)
    assert [name for name, value in values.items() if value == getattr(moejax.SamplingParams(), name)] == []
    values["no_skip_special_tokens"] = not values.pop("skip_special_tokens")
    values["stop_token_id"] = values.pop("stop_token_ids")
    values["logit_bias"] = tuple(f"{token}={bias}" for token, bias in values["logit_bias"])
    flags: list[str] = []
    for name, value in values.items():
        for one in value if isinstance(value, tuple) else [value]:
            flags += [f"--{name.replace('_', '-')}", *([] if one is True else [str(one)])]
    reached: dict[str, Any] = {}
    printed = output.Printed("done", "speed", None, ())
    monkeypatch.setattr(moejax, "load", lambda source, **settings: (source, settings), raising=False)
    monkeypatch.setattr(output, "decode_all", lambda *args, **_: reached.update(args=args) or printed)
    load = ("--dtype", "f16", "--expert-backend", "dense", "--max-seq-len", "99", "--dispatch", "gather")
    load += ("--micro-batches", "3")
    outcome = call("decode", tiny_folder, "--token-ids", "1 2", "--mesh", "expert=2", *load, *flags)
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("data=1,expert=2,tensor=1") == 1
    says(outcome.err, "data=1,expert=2,tensor=1", "2", "8 devices")
    (source, given), prompts, sampling = reached["args"]
    settings = {"dtype": "f16", "expert_backend": "dense", "max_seq_len": 99, "seed": 0, "micro_batches": 3}
    split = Split(mesh=MeshConfig(expert=2), dispatch="gather", remark=None)
    assert source.folder == tiny_folder and (given, prompts, sampling) == (settings | {"mesh": split}, [[1, 2]], params)


@pytest.mark.parametrize("command", ["decode", "latency", "throughput"])
def test_a_mesh_that_cannot_be_is_told_alone(call: Call, tiny: Tiny, tiny_folder: Path, command: str) -> None:
    """Without the choice of its dispatch, which nobody needs then."""
    given = ("decode", tiny_folder, "--token-ids", "1 2") if command == "decode" else ("bench", command, tiny_folder)
    lengths = () if command == "decode" else ("-p", "2", "-n", "2")
    outcome = call(*given, *lengths, "--mesh", "data=8,expert=2", *F32)
    assert (outcome.status, outcome.out) == (2, "")
    error_line(outcome.err, "data=8,expert=2,tensor=1", "16 devices", "8 cpu devices")


def test_json_is_the_whole_result(call: Call, tiny: Tiny, tiny_folder: Path) -> None:
    flags = "-n 5 --temperature 0.9 --seed 7 --n 2 --logprobs 2 --prompt-logprobs 1 --return-routed-experts --json"
    prompts = ["--prompt", PROMPT, "--token-ids", "[9, 8,7]"]
    outcome = call("decode", tiny_folder, *prompts, *flags.split(), *F32)
    found = json.loads(outcome.out)
    results = expected(
        tiny,
        [PROMPT, [9, 8, 7]],
        max_tokens=5,
        temperature=0.9,
        seed=7,
        n=2,
        logprobs=2,
        prompt_logprobs=1,
        return_routed_experts=True,
    )
    assert [without_seconds(result) for result in found] == [without_seconds(plain(result)) for result in results]
    assert found[1]["prompt_token_ids"] == [9, 8, 7]
    assert found[0]["outputs"][1]["logprobs"][0].keys() >= {str(found[0]["outputs"][1]["token_ids"][0])}
    assert len(found[0]["outputs"][0]["routed_experts"]) == len(results[0].prompt_token_ids) + 5 - 1


def test_max_new_tokens_is_another_name(call: Call, tiny: Tiny, tiny_folder: Path) -> None:
    outcome = call("decode", tiny_folder, "--prompt", PROMPT, "--max-new-tokens", "12", *F32, "--quiet")
    assert (outcome.out, outcome.err) == (expected(tiny)[0].text + "\n", "")


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_prompt_from_standard_input_loses_one_line_break(
    call: Call, tiny: Tiny, tiny_folder: Path, ending: bytes
) -> None:
    prompt = "é\nlist\n"
    outcome = call("decode", tiny_folder, "--prompt", "-", "-n", "12", *F32, stdin=prompt.encode() + ending or b"")
    if not ending:
        prompt = prompt.removesuffix("\n")
    assert outcome.out == expected(tiny, prompt)[0].text + "\n"


def test_chat_goes_through_the_template(call: Call, tiny: Tiny, tiny_folder: Path) -> None:
    outcome = call(
        "decode", tiny_folder, "--chat", "--system", "be a list", "--prompt", PROMPT, "-n", "2", *F32, "--json"
    )
    tokenizer = moejax.load(tiny_folder).tokenizer
    assert tokenizer is not None
    messages = [{"role": "system", "content": "be a list"}, {"role": "user", "content": PROMPT}]
    assert json.loads(outcome.out)[0]["prompt_token_ids"] == encode_chat(tokenizer, messages)


def test_stop_text_with_escapes(call: Call, tiny: Tiny, tiny_folder: Path) -> None:
    text = expected(tiny)[0].text
    stop = text[len(text) // 2]
    escaped = "".join(rf"\u{ord(char):04x}" for char in stop)
    outcome = call("decode", tiny_folder, "--prompt", PROMPT, "-n", "12", "--stop", escaped, *F32)
    assert outcome.out == expected(tiny, stop=stop)[0].text + "\n"
    assert f"(stop at {stop!r})" in outcome.err
    kept = call("decode", tiny_folder, "--prompt", PROMPT, "--stop", escaped, "--include-stop-str-in-output", *F32)
    assert kept.out == outcome.out.removesuffix("\n") + stop + "\n"


def test_stop_token(call: Call, tiny: Tiny, tiny_folder: Path) -> None:
    token = expected(tiny)[0].token_ids[3]
    outcome = call("decode", tiny_folder, "--prompt", PROMPT, "-n", "12", "--stop-token-id", str(token), *F32)
    assert f"(stop at {token})" in outcome.err


def test_several_outputs_are_headed_by_their_numbers(call: Call, tiny: Tiny, tiny_folder: Path) -> None:
    outcome = call("decode", tiny_folder, "--prompt", PROMPT, "--prompt", "a list", "-n", "12", *F32)
    first, second = expected(tiny, [PROMPT, "a list"])
    assert outcome.out == f"--- prompt 0 ---\n{first.text}\n\n--- prompt 1 ---\n{second.text}\n"
    assert outcome.err.startswith("2 prompts | prompt ")
    assert "| generated 24 (2 length)\n" in outcome.err
    sampled = call("decode", tiny_folder, "--prompt", PROMPT, "-n", "3", "--n", "2", "--temperature", "1", *F32)
    assert re.findall("--- .* ---", sampled.out) == ["--- prompt 0, output 0 ---", "--- prompt 0, output 1 ---"]


@pytest.mark.parametrize("flag", ["--stream", "--no-stream"])
def test_logprobs_are_a_table_after_the_text(call: Call, tiny: Tiny, tiny_folder: Path, flag: str) -> None:
    outcome = call("decode", tiny_folder, "--prompt", PROMPT, "-n", "12", "--logprobs", "2", flag, *F32)
    result = expected(tiny, logprobs=2)[0]
    text, _, table = outcome.out.partition("\n\nlog-probabilities\n")
    assert text == result.text
    rows = table.splitlines()[3:]
    assert result.logprobs is not None
    assert len(rows) == len(result.token_ids)
    for place, (row, token, entry) in enumerate(zip(rows, result.token_ids, result.logprobs, strict=True)):
        words = row.split()
        assert words[0] == str(place)
        assert f"{token} " in row
        assert f"{entry[token].logprob:.3f}" in words
        others = [f"{one.logprob:.2f}" for one in entry.values() if one is not entry[token]]
        assert re.findall(r"-\d+\.\d\d(?!\d)", row) == others


def test_prompt_logprobs_and_routed_experts_are_tables(call: Call, tiny: Tiny, tiny_folder: Path) -> None:
    flags = ("--prompt-logprobs", "1", "--return-routed-experts")
    outcome = call("decode", tiny_folder, "--token-ids", "9 8 7", "-n", "12", *flags, *F32)
    result = expected(tiny, [9, 8, 7], return_routed_experts=True)[0]
    assert result.routed_experts is not None
    counts = np.bincount(result.routed_experts[:, 0].ravel(), minlength=4)
    _, _, tables = outcome.out.partition("how often each expert was chosen")
    routing, _, prompt = tables.partition("log-probabilities of the prompt")
    assert routing.rstrip().splitlines()[-1].split() == ["0", *map(str, counts), f"{counts.max() / counts.mean():.2f}"]
    assert [line.split()[0] for line in prompt.splitlines()[-3:]] == ["0", "1", "2"]


def test_model_without_tokenizer_prints_ids(call: Call, tiny: Tiny, tiny_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny_folder / name)
    ids = expected(tiny, [9, 8, 7])[0].token_ids
    for flag in ("--stream", "--no-stream"):
        outcome = call("decode", tmp_path, "--token-ids", "9 8 7", "-n", "12", *F32, flag)
        assert outcome.out == " ".join(map(str, ids)) + "\n"


def test_random_weights_follow_their_seed(call: Call, tiny_folder: Path, tiny: Tiny) -> None:
    source = f"random:{tiny_folder / 'config.json'}"

    def ids(*flags: str) -> str:
        return call("decode", source, "--token-ids", "9 8 7", "-n", "12", *F32, *flags).out

    assert ids("--model-seed", "0") == ids()
    assert ids("--model-seed", "1") != ids()


def test_max_seq_len_limits_a_prompt(call: Call, tiny_folder: Path, tiny: Tiny) -> None:
    outcome = call("decode", tiny_folder, "--token-ids", "9 8 7", "-n", "12", "--max-seq-len", "10", *F32)
    assert outcome.status == 2
    error_line(outcome.err, "10", "--max-seq-len", "--max-tokens 7")
