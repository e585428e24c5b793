"""Sampling parameters: what they accept, what they make of it, and what they say about the rest."""

import dataclasses
import inspect
import re
import subprocess
import sys
from typing import Any

import pytest

from moejax import SamplingParams
from moejax.decoding.sampling_params import PARAMETER_NAMES, override
from tests.messages import refuses

DEFAULTS = {
    "max_tokens": 128,
    "min_tokens": 0,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": (),
    "seed": None,
    "n": 1,
    "stop": (),
    "stop_token_ids": (),
    "ignore_eos": False,
    "include_stop_str_in_output": False,
    "skip_special_tokens": True,
    "logprobs": None,
    "prompt_logprobs": None,
    "return_routed_experts": False,
}


def build(**given: Any) -> SamplingParams:
    """For values and names that the type checker would refuse."""
    return SamplingParams(**given)


def test_defaults() -> None:
    assert dataclasses.asdict(SamplingParams()) == DEFAULTS


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "facts", "wrong"),
    [
        ("max_tokens", ("at least 1",), (0, -5, 1.5, "7", None, True)),
        ("min_tokens", ("at least 0",), (-1, 0.0, False)),
        ("top_k", ("at least -1",), (-2, 3.0, None)),
        ("n", ("at least 1",), (0, 2.0)),
        ("seed", (f"0 to {2**63 - 1}",), (-1, 2**63, 1.0, "1", True)),
        ("logprobs", ("at least 0",), (-1, 1.0, True)),
        ("prompt_logprobs", ("at least 0",), (-1, True)),
        ("temperature", ("0 to 1e+30",), (-0.1, 2e30, float("nan"), float("inf"), "1", None, True)),
        ("top_p", ("0 to 1",), (-0.1, 1.01, float("nan"), None)),
        ("min_p", ("0 to 1",), (-0.1, 1.01)),
        ("repetition_penalty", ("1e-06 to 1000000.0",), (-1.0, 0, 1e7, float("inf"))),
        ("presence_penalty", ("-2 to 2",), (-2.1, 2.1)),
        ("frequency_penalty", ("-2 to 2",), (-2.1, 2.1, float("nan"))),
    ],
)
def test_numbers_out_of_range(name: str, facts: tuple[str, ...], wrong: tuple[Any, ...]) -> None:
    for value in wrong:
        with refuses(ValueError, name, *facts, f"got {value!r}"):
            build(**{name: value})


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty"])
def test_numbers_too_large_for_a_float(name: str) -> None:
    with refuses(ValueError, name, "got"):
        build(**{name: 10**400})


def test_top_p_of_zero() -> None:
    with refuses(ValueError, "top_p", "greater than 0", "got 0", "1"):
        SamplingParams(top_p=0)


@pytest.mark.parametrize(
    "name", ["ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "return_routed_experts"]
)
@pytest.mark.parametrize("value", [1, None, "yes"])
def test_flags_are_true_or_false(name: str, value: object) -> None:
    with refuses(ValueError, name, "True or False", f"got {value!r}"):
        build(**{name: value})


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [1], 3, None, {"a"}])
def test_stop_strings(stop: Any) -> None:
    with refuses(ValueError, "stop", "string", f"got {stop!r}"):
        SamplingParams(stop=stop)


@pytest.mark.parametrize("ids", [5, [-1], [1.0], ["1"], [True], None, {1}])
def test_stop_token_ids(ids: Any) -> None:
    with refuses(ValueError, "stop_token_ids", "list", f"got {ids!r}"):
        SamplingParams(stop_token_ids=ids)


@pytest.mark.parametrize("biases", [5, "ab", [1, 2], [(1,)], {-1: 1.0}, {"a": 1.0}, {True: 1.0}, None])
def test_biases(biases: Any) -> None:
    with refuses(ValueError, "logit_bias"):
        build(logit_bias=biases)


@pytest.mark.parametrize("bias", [-100.5, 101, float("nan"), "2", True, None])
def test_biases_out_of_range(bias: Any) -> None:
    with refuses(ValueError, "logit_bias", "-100 to 100", f"got {bias!r}"):
        build(logit_bias={1: bias})


def test_as_many_biases_as_openai_takes() -> None:
    assert len(SamplingParams(logit_bias=dict.fromkeys(range(300), 1.5)).logit_bias) == 300
    assert SamplingParams(logit_bias={3: -1, 7: 0.5}) == SamplingParams(logit_bias=((3, -1), (7, 0.5)))
    with refuses(ValueError, "301", "300"):
        SamplingParams(logit_bias=dict.fromkeys(range(301), 1.5))


def test_more_tokens_demanded_than_allowed() -> None:
    with refuses(ValueError, "min_tokens=9", "max_tokens=8"):
        SamplingParams(min_tokens=9, max_tokens=8)


def test_several_greedy_outputs() -> None:
    with refuses(ValueError, "n=2", "temperature", "n=1"):
        SamplingParams(n=2)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_token", "max_tokens"),
        ("temprature", "temperature"),
        ("topk", "top_k"),
        ("top_P", "top_p"),
        ("stop_ids", "stop_token_ids"),
        ("stops", "stop"),
        ("frequency_penality", "frequency_penalty"),
        # words of other libraries that are too far from ours to be found by spelling
        ("max_length", "max_tokens"),
        ("do_sample", "temperature"),
        ("num_return_sequences", "n"),
        ("eos", "stop"),
    ],
)
def test_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    for call in (lambda: build(**{name: 1}), lambda: override(SamplingParams(), {name: 1})):
        with refuses(ValueError, repr(name), repr(near)):
            call()


def test_unknown_name_unlike_any() -> None:
    with refuses(ValueError, "'zzz'", ", ".join(DEFAULTS)):
        build(zzz=1)


# --- what is made of the rest ---


@pytest.mark.parametrize(
    "limits", [{"top_k": -1, "top_p": 1, "min_p": 1}, {"top_p": 1e-9, "temperature": 0, "seed": 0}]
)
def test_bounds_are_allowed(limits: dict[str, Any]) -> None:
    params = SamplingParams(**limits, presence_penalty=-2, frequency_penalty=2, logprobs=0, min_tokens=1, max_tokens=1)
    assert {name: getattr(params, name) for name in limits} == limits


def test_stops_become_tuples_without_duplicates() -> None:
    params = SamplingParams(stop=["b", "a", "b"], stop_token_ids=[7, 3, 7])
    assert (params.stop, params.stop_token_ids) == (("b", "a"), (7, 3))
    assert SamplingParams(stop="\n\n").stop == ("\n\n",)


def test_equal_parameters_are_equal_and_hash_alike() -> None:
    assert SamplingParams(stop="a", seed=1) == SamplingParams(stop=["a"], seed=1)
    assert len({SamplingParams(stop="a"), SamplingParams(stop=("a",)), SamplingParams()}) == 2


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().max_tokens = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "greedy", "filtered", "penalized"),
    [
        ({}, True, False, False),
        ({"top_k": 5, "top_p": 0.5, "min_p": 0.1}, True, False, False),  # greedy: the best token passes every filter
        ({"temperature": 0.1}, False, False, False),
        ({"temperature": 1, "top_k": -1}, False, False, False),
        ({"temperature": 1, "top_k": 1}, False, True, False),
        ({"temperature": 1, "top_p": 0.9}, False, True, False),
        ({"temperature": 1, "min_p": 0.1}, False, True, False),
        ({"repetition_penalty": 0.9}, True, False, True),
        ({"presence_penalty": -1}, True, False, True),
        ({"frequency_penalty": 1}, True, False, True),
    ],
)
def test_what_a_request_needs(given: dict[str, Any], greedy: bool, filtered: bool, penalized: bool) -> None:
    params = SamplingParams(**given)
    assert (params.greedy, params.filtered, params.penalized) == (greedy, filtered, penalized)


# --- max_new_tokens and overrides ---


def test_alias_of_max_tokens() -> None:
    assert SamplingParams(max_new_tokens=5).max_tokens == 5
    assert SamplingParams(max_tokens=5, max_new_tokens=5).max_tokens == 5
    with refuses(ValueError, "max_tokens=4", "max_new_tokens=5", "give one"):
        SamplingParams(max_tokens=4, max_new_tokens=5)
    with refuses(ValueError, "max_tokens", "at least 1", "got 0"):
        SamplingParams(max_new_tokens=0)


def test_overrides_replace_fields_and_keep_the_rest() -> None:
    params = SamplingParams(max_tokens=4, temperature=0.5, seed=3, stop="a")
    assert override(params, {}) == params
    assert override(params, {"temperature": 0.7}) == dataclasses.replace(params, temperature=0.7)
    assert override(params, {"max_new_tokens": 9}) == dataclasses.replace(params, max_tokens=9)
    assert override(params, {"stop": ["b", "b"]}).stop == ("b",)
    assert override(None, {"max_new_tokens": 9}) == SamplingParams(max_tokens=9)
    assert params == SamplingParams(max_tokens=4, temperature=0.5, seed=3, stop="a")


def test_overrides_are_validated_with_the_fields_they_join() -> None:
    with refuses(ValueError, "min_tokens=6", "max_tokens=5"):
        override(SamplingParams(min_tokens=6, max_tokens=7), {"max_tokens": 5})
    with refuses(ValueError, "n=2", "temperature", "n=1"):
        override(SamplingParams(n=2, temperature=1), {"temperature": 0})


@pytest.mark.parametrize("params", [None, SamplingParams(), SamplingParams(max_tokens=9)])
def test_overrides_with_both_names(params: SamplingParams | None) -> None:
    with refuses(ValueError, "max_tokens=4", "max_new_tokens=5", "give one"):
        override(params, {"max_tokens": 4, "max_new_tokens": 5})


def test_every_parameter_is_described() -> None:
    assert PARAMETER_NAMES == tuple(DEFAULTS)
    attributes = inspect.cleandoc(SamplingParams.__doc__ or "").partition("Raises:")[
        0
    ]  # from Python 3.13 on it is clean
    described = re.findall(r"^ {4}(\w+):", attributes, flags=re.MULTILINE)
    assert tuple(described) == PARAMETER_NAMES


def test_importing_them_imports_no_jax() -> None:
    code = "import sys, moejax.decoding.sampling_params; print({'jax', 'jaxlib', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
