"""`moejax bench serve` as people call it."""

import json
import shlex

import pytest

from moejax.bench import serving_load
from moejax.cli.bench_serve import EXAMPLES
from tests.messages import error_line, says
from tests.moejax.bench.stub_server import serving, steady
from tests.moejax.cli.conftest import Call

FEW = ("--num-prompts", "3", "--input-len", "4", "--output-len", "2", "--range-ratio", "0")


def test_table_and_exit_code(call: Call) -> None:
    with serving(steady(0.0, 0.0)) as stub:
        outcome = call("bench", "serve", "--base-url", stub.base_url, *FEW)
    assert (outcome.status, outcome.err) == (0, "")
    first, second, header, *rows = outcome.out.splitlines()
    assert first.startswith("3 requests completed in ")
    assert second.startswith("12 tokens in, 6 out: ")
    assert header.split() == ["milliseconds", "mean", "median", "p99"]
    assert [row.split()[0] for row in rows] == ["TTFT", "TPOT", "ITL", "E2EL"]
    assert [body["model"] for body in stub.bodies] == ["stub"] * 3


def test_json_has_the_keys_of_vllm_bench_serve(call: Call) -> None:
    with serving(steady(0.0, 0.0)) as stub:
        outcome = call("bench", "serve", "--base-url", f"{stub.base_url}/v1/", "--json", *FEW)
    result = json.loads(outcome.out)
    latencies = {f"{how}_{what}_ms" for how in ("mean", "median", "std", "p99") for what in ("ttft", "tpot", "itl")}
    assert latencies | {"duration", "completed", "failed", "request_throughput", "output_throughput"} <= result.keys()
    assert {"total_input_tokens", "total_output_tokens", "total_token_throughput", "num_prompts"} <= result.keys()
    assert (result["completed"], result["request_rate"], result["output_lens"]) == (3, "inf", [2, 2, 2])


def test_failed_requests_are_shown_and_decide_the_exit_code(call: Call) -> None:
    with serving(steady(0, 0), status=429, text='{"error": {"message": "the queue is full"}}') as stub:
        outcome = call("bench", "serve", "--base-url", stub.base_url, *FEW)
    assert outcome.status == 1
    says(outcome.out, "0 requests", "3 failed")
    error_line(outcome.err, "3 x HTTP 429", "queue is full")


def programs(ready: object, of: object) -> str:
    return json.dumps({"status": "ready", "programs": {"ready": ready, "of": of}})


def test_a_server_that_compiles_is_waited_for(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_load, "POLL_SECONDS", 0)
    with serving(steady(0.0, 0.0), health=[programs(2, 4), programs(2, 4), programs(3, 4), programs(4, 4)]) as stub:
        outcome = call("bench", "serve", "--base-url", stub.base_url, *FEW)
    assert (outcome.status, outcome.err, stub.health, len(stub.bodies)) == (0, "", 4, 3)


def test_a_server_that_does_not_go_on_compiling_is_told(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_load, "POLL_SECONDS", 0)
    with serving(steady(0.0, 0.0), health=[programs(2, 4), programs(3, 4)]) as stub:
        outcome = call("bench", "serve", "--base-url", stub.base_url, "--timeout", "0.05", *FEW)
    assert (outcome.status, len(stub.bodies)) == (0, 3)
    says(outcome.err, "warning", stub.base_url, "3 of its 4 programs", "0.05 s")


@pytest.mark.parametrize("said", ["", "[]", "no JSON", '{"programs": [1, 2]}', programs("2", 4), programs(2, None)])
def test_a_server_that_says_nothing_of_programs_is_not_waited_for(call: Call, said: str) -> None:
    with serving(steady(0.0, 0.0), health=[said]) as stub:
        outcome = call("bench", "serve", "--base-url", stub.base_url, *FEW)
    assert (outcome.status, outcome.err, stub.health, len(stub.bodies)) == (0, "", 1, 3)


def test_without_a_server_the_error_says_how_to_start_one(call: Call) -> None:
    outcome = call("bench", "serve", "--base-url", "http://127.0.0.1:1")
    assert (outcome.status, outcome.out) == (2, "")
    error_line(outcome.err, "moejax serve CHECKPOINT")


@pytest.mark.parametrize("arguments", [("bench",), ("bench", "--help")], ids=" ".join)
def test_group_without_a_command_is_help(call: Call, arguments: tuple[str, ...]) -> None:
    outcome = call(*arguments)
    assert (outcome.status, outcome.err) == (0, "")
    assert "\n  serve " in outcome.out


@pytest.mark.parametrize(
    ("flag", "value", "facts"),
    [
        ("--num-prompts", "0", ("1", "got 0")),
        ("--num-prompts", "99999999999", ("100,000", "got 99999999999")),
        ("--input-len", "0", ("1", "got 0")),
        ("--request-rate", "nan", ("0", "got nan")),
        ("--request-rate", "0", ("0", "got 0.0")),
        ("--range-ratio", "nan", ("0", "1", "got nan")),
        ("--timeout", "0", ("0", "got 0.0")),
        ("--vocab-size", "0", ("10", "got 0")),
    ],
)
def test_wrong_values_are_named_as_flags_before_a_server_is_asked(
    call: Call, flag: str, value: str, facts: tuple[str, ...]
) -> None:
    outcome = call("bench", "serve", "--base-url", "http://127.0.0.1:1", flag, value)
    assert outcome.status == 2
    error_line(outcome.err, flag, *facts)


def test_examples_use_flags_that_exist(call: Call) -> None:
    known = call("bench", "serve", "--help").out.partition("Examples:")[0].split()
    for example in EXAMPLES:
        assert [word for word in shlex.split(example) if word.startswith("--") and word not in known] == []
