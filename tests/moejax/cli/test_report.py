"""What is printed beside text: JSON that every parser reads, and statistics that are true and fit a terminal."""

import json
import math
from typing import Any

import jax
import numpy as np
import pytest

import moejax
from moejax import DecodeResult, Logprob, Output, Stats
from moejax.cli import report
from moejax.cli.amounts import size
from moejax.cli.report import as_json, statistics
from moejax.decoding import engine
from moejax.decoding.engine import DecodeRun
from moejax.runtime.huge_pages import HugePages, why_none
from tests.huge_memory import Refusals
from tests.messages import says
from tests.moejax.decoding.tiny_checkpoint import Tiny


def stats(**fields: Any) -> Stats:
    given = {
        "prompt_tokens": 4,
        "padded_rows": 0,
        "device_rows": (0,),
        "expert_rows": ((0,),),
        "generated_tokens": 11,
        "ttft_seconds": 0.5,
        "prefill_seconds": 0.25,
        "decode_seconds": 2.0,
        "decode_tokens_per_second": 5.0,
        "call_decode_seconds": 2.0,
        "compile_seconds": 3.0,
    }
    return Stats(**(given | fields))


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_json_has_null_for_what_is_no_number() -> None:
    """A broken checkpoint's logits may be NaN; `NaN` would make the whole array unreadable."""
    entry = {
        7: Logprob(logprob=math.nan, rank=1, decoded_token="a"),
        8: Logprob(logprob=-math.inf, rank=2, decoded_token="b"),
    }
    output = Output(
        index=0,
        text="a",
        token_ids=[7],
        cumulative_logprob=math.nan,
        logprobs=[entry],
        finish_reason="length",
        stop_reason=None,
        routed_experts=np.array([[[0, 1]]], np.int16),
    )
    result = DecodeResult(prompt_token_ids=[1, 2], prompt_logprobs=[None, entry], outputs=[output], stats=stats())
    (found,) = json.loads(as_json([result]), parse_constant=refuse)
    expected = {
        "7": {"logprob": None, "rank": 1, "decoded_token": "a"},
        "8": {"logprob": None, "rank": 2, "decoded_token": "b"},
    }
    assert found["prompt_logprobs"] == [None, expected]
    assert found["outputs"][0]["logprobs"] == [expected]
    assert found["outputs"][0]["cumulative_logprob"] is None
    assert found["outputs"][0]["routed_experts"] == [[[0, 1]]]
    assert found["stats"]["ttft_seconds"] == 0.5


def test_statistics_of_a_prompt() -> None:
    assert statistics([stats()], ["stop at '.'"]) == (
        "prompt 4 tokens | generated 11 (stop at '.')",
        "first token 0.500 s | decode 5.0 tokens/s | compile 3.0 s",
    )


def test_statistics_of_one_token() -> None:
    one = stats(generated_tokens=1, decode_seconds=0.0, decode_tokens_per_second=0.0, call_decode_seconds=0.0)
    assert statistics([one], ["length"])[1] == "first token 0.500 s | decode - | compile 3.0 s"


def test_statistics_fit_a_terminal() -> None:
    large = {"prompt_tokens": 32_768, "generated_tokens": 4_096, "ttft_seconds": 99.5, "compile_seconds": 99.9}
    lines = statistics([stats(**large, decode_tokens_per_second=999.9)] * 64, ["length"] * 60 + ["stop"] * 4)
    assert lines == (
        "64 prompts | prompt 2,097,152 tokens | generated 262,144 (60 length, 4 stop)",
        "first token 99.500 s | decode 63,993.6 tokens/s | compile 99.9 s",
    )
    assert max(len(lines[0]), len(f"{lines[1]} | load 99.9 s")) <= 80


@pytest.mark.parametrize(
    ("counted", "reason", "words"),
    [
        ((1_400_000_000, 1_480_000_000), "unasked", ["1.48 GB", "94%"]),
        ((1_479_999_999, 1_480_000_000), "unasked", ["99%"]),
        ((7_740_000, 7_740_000), "unasked", ["7.74 MB", "100%"]),
        (
            (0, 1_480_000_000),
            "transparent_hugepage/enabled is never",
            ["none", "(transparent_hugepage/enabled is never)"],
        ),
        ((None, 1_480_000_000), "not Linux", ["1.48 GB", "none", "(not Linux)"]),
        ((0, 1_480_000_000), None, ["1.48 GB", "none"]),
    ],
)
def test_memory_of_weights(
    monkeypatch: pytest.MonkeyPatch, counted: tuple[int | None, int], reason: str | None, words: list[str]
) -> None:
    monkeypatch.setattr(report, "in_huge_pages", lambda arrays: counted)
    monkeypatch.setattr(report, "why_none", lambda: reason)
    line = report.memory_of_weights([])
    says(line, *words)
    assert "unasked" not in line and "None" not in line
    assert len(line) <= 80


@pytest.mark.skipif(why_none() is not None, reason=f"no huge pages here: {why_none()}")
def test_memory_of_weights_in_an_arena_and_of_a_loaded_model(tiny: Tiny, refusals: Refusals) -> None:
    array = HugePages().empty((2**20,), np.float32)
    array[...] = 1
    line = report.memory_of_weights([array, jax.device_put(array)])
    says(line, "4.19 MB", *(["100%"] if not refusals.happened() else []))
    leaves = jax.tree.leaves(tiny.model.params)
    says(report.memory_of_weights(leaves), size(sum(leaf.nbytes for leaf in leaves)))


@pytest.mark.parametrize("slots", [2, 4, 6])
def test_speed_is_that_of_the_whole_call(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, slots: int) -> None:
    """Outputs of two prompts that are decoded together, or not: what the call generated, by what its steps took."""
    runs: list[DecodeRun] = []
    make = DecodeRun.__post_init__
    monkeypatch.setattr(engine, "MAX_SEQUENCES", slots)
    monkeypatch.setattr(DecodeRun, "__post_init__", lambda self: (runs.append(self), make(self))[1])
    results = moejax.decode(tiny.model, [[68], [15]], max_tokens=4, n=3, temperature=1.0, seed=1)
    seconds = runs[0].times.decode
    assert seconds > 0 and [result.stats.call_decode_seconds for result in results] == [seconds] * 2
    lines = statistics([result.stats for result in results], ["length"] * 6)
    assert f"| decode {6 * 3 / seconds:,.1f} tokens/s |" in lines[1]
    events = list(moejax.decode(tiny.model, [[68], [15]], max_tokens=4, n=3, temperature=1.0, seed=1, stream=True))
    last = [event.stats for event in events if event.stats][-1]
    assert last.call_decode_seconds == runs[1].times.decode
