"""Misuse of `decode` and `logits`: each is a ValueError that says what was given, what is expected and what to do."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moejax
from moejax import SamplingParams
from moejax._sharding import DeviceMemory
from moejax.decoding import engine
from moejax.runtime.programs import Programs
from tests.messages import refuses, says
from tests.moejax.decoding.tiny_checkpoint import Tiny


@pytest.fixture(autouse=True)
def nothing_is_computed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Misuse is found before the device is touched."""

    def refuse(self: Programs, key: Any, *args: Any, **options: Any) -> None:
        raise AssertionError(f"{key} was called")

    monkeypatch.setattr(Programs, "call", refuse)
    yield


def both(model: moejax.Model, prompts: Any, *facts: object) -> None:
    """What is wrong with prompts is wrong for `decode`, streamed or not, and for `logits`."""
    for call in (moejax.decode, functools.partial(moejax.decode, stream=True), moejax.logits):
        with refuses(ValueError, *facts) as caught:
            call(model, prompts)
        assert "\n" not in str(caught.value)


# --- model ---


def test_a_model_that_was_not_loaded() -> None:
    wrong: Any = "demo"
    both(wrong, "A list is", "'demo'", "moejax.load('demo')")
    wrong = Path("checkpoint")
    both(wrong, "A list is", "'checkpoint'", "moejax.load('checkpoint')")
    wrong = {"params": 1}
    both(wrong, "A list is", "moejax.load", "got a dict")


# --- prompts ---


@pytest.mark.parametrize("prompts", [[], (), np.zeros((0,), np.int32)], ids=repr)
def test_no_prompts(tiny: Tiny, prompts: Any) -> None:
    both(tiny.model, prompts, "no prompts", "string", "token ids")


@pytest.mark.parametrize(
    ("prompts", "index", "what"),
    [
        ("", 0, "token ids"),
        (["a", ""], 1, "token ids"),
        ([[]], 0, "token"),
        ([[1], "a", []], 2, "token"),
        (np.zeros((2, 0), np.int32), 0, "token"),
    ],
)
def test_empty_prompt(tiny: Tiny, prompts: Any, index: int, what: str) -> None:
    both(tiny.model, prompts, f"prompt {index}", "empty", what)


@pytest.mark.parametrize(
    ("prompts", "index", "wrong"),
    [
        ([300], 0, 300),
        ([[1, 2], [3, -1, 400]], 1, -1),
        (np.array([[0, 299], [2**40, 1]]), 1, 2**40),
        ([10**30], 0, 10**30),
    ],
)
def test_token_id_out_of_range(tiny: Tiny, prompts: Any, index: int, wrong: int) -> None:
    both(tiny.model, prompts, f"prompt {index}", f"token id {wrong}", "0 to 299")


@pytest.mark.parametrize(
    "prompts",
    [None, 5, 1.5, {"a": 1}, {1, 2}, iter([1]), np.int32(4)],
    ids=["None", "int", "float", "dict", "set", "iterator", "numpy scalar"],
)
def test_prompts_of_another_type(tiny: Tiny, prompts: Any) -> None:
    both(tiny.model, prompts, "prompts", "string", "token ids", f"got {prompts!r:.80}")


@pytest.mark.parametrize("prompts", [b"abc", bytearray(b"abc"), np.array(5), np.array("abc")], ids=repr)
def test_prompts_that_only_look_like_sequences(tiny: Tiny, prompts: Any) -> None:
    """Bytes are no token ids, and an array without axes has no length."""
    both(tiny.model, prompts, "prompts", "string", "token ids", f"got {prompts!r:.80}")


@pytest.mark.parametrize(
    ("prompts", "index"),
    [
        ([True, False], 0),
        ([[1, True]], 0),
        (["a", None], 1),
        (["a", 5], 1),
        ([[1], [1.0]], 1),
        ([[1], ["a"]], 1),
        ([[[1]]], 0),
        ([1.5, 2.5], 0),
        (["a", b"abc"], 1),
        (np.ones((2, 2)), 0),
        (np.array([True, False]), 0),
        (np.ones((1, 2, 2), np.int32), 0),
    ],
    ids=repr,
)
def test_prompt_of_another_type(tiny: Tiny, prompts: Any, index: int) -> None:
    for call in (moejax.decode, moejax.logits):
        with refuses(ValueError, f"prompt {index}", "string", "token ids", "got") as caught:
            call(tiny.model, prompts)
        assert "\n" not in str(caught.value)


def test_prompt_too_long(tiny: Tiny) -> None:
    model = dataclasses.replace(tiny.model, max_seq_len=64)
    with refuses(ValueError, "prompt 1", "50 tokens", "max_tokens=15", "64", "max_seq_len", "max_tokens=14"):
        moejax.decode(model, [[1] * 49, [1] * 50], max_tokens=15)
    for length in (64, 90):
        with refuses(ValueError, "prompt 0", f"{length} tokens", "max_tokens=1", "64", "max_seq_len", "63 tokens"):
            moejax.decode(model, [1] * length, max_tokens=1)
    with refuses(ValueError, "prompt 0", "65 tokens", "64", "max_seq_len"):
        moejax.logits(model, [[1] * 65])
    with pytest.raises(ValueError, match="max_tokens"):
        moejax.decode(model, [1], max_tokens=10**400)


def test_text_without_a_tokenizer(windowed: Tiny) -> None:
    reason = windowed.model.no_tokenizer_reason
    assert reason is not None
    says(reason, "tokenizer.json", "token ids")
    both(windowed.model, [[1], "a"], "prompt 1", "text", reason)
    with refuses(ValueError, "stop strings", reason, "stop_token_ids"):
        moejax.decode(windowed.model, [1], stop="a")


def test_text_that_cannot_be_encoded(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        moejax.decode(tiny.model, "a\ud800")


# --- parameters ---


def test_unknown_parameter(tiny: Tiny) -> None:
    with refuses(ValueError, "'max_token'", "'max_tokens'"):
        moejax.decode(tiny.model, "a", max_token=5)
    with refuses(ValueError, "'tempreature'", "'temperature'"):
        moejax.decode(tiny.model, "a", SamplingParams(), tempreature=5)


def test_parameter_out_of_range(tiny: Tiny) -> None:
    with refuses(ValueError, "temperature", "0", "1e+30", "got -1"):
        moejax.decode(tiny.model, "a", temperature=-1)
    with refuses(ValueError, "n=3", "temperature", "n=1"):
        moejax.decode(tiny.model, "a", n=3)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_wrong_number_of_params(tiny: Tiny, count: int) -> None:
    with refuses(ValueError, f"got {count} SamplingParams", "2 prompts"):
        moejax.decode(tiny.model, ["a", "b"], [SamplingParams()] * count)


@pytest.mark.parametrize(
    ("params", "name"), [({"max_tokens": 5}, "dict"), (5, "int"), ([5], "int"), ([{"n": 1}], "dict"), ("a", "str")]
)
def test_params_of_another_type(tiny: Tiny, params: Any, name: str) -> None:
    with refuses(ValueError, "params", "SamplingParams", f"got {name}"):
        moejax.decode(tiny.model, "a", params)


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_more_logprobs_than_tokens(tiny: Tiny, name: str) -> None:
    given: dict[str, Any] = {name: 301}
    with refuses(ValueError, f"{name}=301", "300 tokens"):
        moejax.decode(tiny.model, "a", None, **given)


@pytest.mark.parametrize("given", [{"prompt_logprobs": 2}, {"prompt_logprobs": 0}, {"return_routed_experts": True}])
def test_reports_that_a_stream_does_not_carry(tiny: Tiny, given: dict[str, Any]) -> None:
    (name,) = given
    with refuses(ValueError, name, "stream=False"):
        moejax.decode(tiny.model, ["a", "b"], [SamplingParams(), SamplingParams(**given)], stream=True)


def test_stop_token_out_of_range(tiny: Tiny) -> None:
    with refuses(ValueError, "stop_token_ids", "300", "0 to 299"):
        moejax.decode(tiny.model, "a", stop_token_ids=[1, 300])


def test_min_tokens_where_every_token_is_a_stop(tiny: Tiny) -> None:
    with refuses(ValueError, "min_tokens=1", "stop token"):
        moejax.decode(tiny.model, "a", stop_token_ids=list(range(300)), min_tokens=1)


def test_cache_that_does_not_fit(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 layers x 2 KV heads x 8 x keys and values in float32: 256 bytes a token."""
    memory = DeviceMemory(device="cpu", total_bytes=10**6, free_bytes=2 * 128 * 256 - 1)
    monkeypatch.setattr(engine, "device_memory", lambda devices: memory)
    with refuses(ValueError, "2 sequences", "128 tokens", "0.0 GB", "cpu", "0.0 GB"):
        moejax.decode(tiny.model, ["a", "b"], max_tokens=120)
    with pytest.raises(AssertionError, match="empty state"):  # half of it does fit
        moejax.decode(tiny.model, ["a", "b"], max_tokens=60)
