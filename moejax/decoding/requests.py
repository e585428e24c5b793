"""Prompts and parameters, as users give them, into checked requests. Imports no JAX."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from moejax.decoding.sampling_params import SamplingParams, override
from moejax.families.config import ModelConfig
from moejax.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]


class TokenArray(Protocol):
    """An array of token ids, numpy's, JAX's or another library's."""

    @property
    def ndim(self) -> int: ...
    def __array__(self) -> np.ndarray: ...


Prompts = Prompt | Sequence[Prompt] | TokenArray


class ModelFacts(Protocol):
    """What requests are checked against: the part of a `Model` that is known before its weights are read."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def no_tokenizer_reason(self) -> str | None: ...
    @property
    def max_seq_len(self) -> int: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to be continued. stop_ids: EOS (unless ignored) and the request's own stop tokens."""

    index: int
    prompt: list[int]
    params: SamplingParams
    stop_ids: tuple[int, ...]


def make_requests(
    model: ModelFacts,
    prompts: Prompts,
    params: SamplingParams | Sequence[SamplingParams] | None,
    overrides: Mapping[str, Any],
) -> list[Request]:
    """One request per prompt.

    Raises:
        ValueError: for a prompt or parameter that this model cannot serve, naming the prompt by its index.
    """
    given = split_prompts(prompts)
    if isinstance(params, Sequence):
        if len(params) != len(given):
            raise ValueError(
                f"got {len(params)} SamplingParams for {len(given)} prompts: give one for all, or one each"
            )
        each = list(params)
    else:
        each = [params] * len(given)
    for one in each:
        if one is not None and not isinstance(one, SamplingParams):
            raise ValueError(f"params must be SamplingParams or a list of them, got {type(one).__name__}")
    return [
        _make_request(model, index, prompt, override(one, overrides))
        for index, (prompt, one) in enumerate(zip(given, each, strict=True))
    ]


def split_prompts(prompts: Prompts) -> list[Prompt]:
    """A list of prompts, also where one prompt alone was given.

    Raises:
        ValueError: for no prompt, or something that is neither text nor token ids.
    """
    if isinstance(prompts, str):
        return [prompts]
    given = _as_lists(prompts)
    if not _is_list(given):
        raise ValueError(
            f"prompts must be a string, a list of token ids, a list of either, or an array [B, T] of ids, "
            f"got {_shown(prompts)}"
        )
    if len(given) == 0:
        raise ValueError("got no prompts: give a string, a list of token ids, or a list of either")
    if all(isinstance(item, (int, np.integer, np.bool_)) for item in given):
        return [given]  # one prompt of token ids
    return list(given)


def prompt_token_ids(model: ModelFacts, index: int, prompt: Prompt) -> list[int]:
    """Token ids of one prompt.

    Raises:
        ValueError: for an empty prompt, text without a tokenizer, or an id that the model does not have.
    """
    prompt = _as_lists(prompt)
    if isinstance(prompt, str):
        if not prompt:
            raise ValueError(f"prompt {index} is empty: give at least one character, or the token ids to start from")
        if model.tokenizer is None:
            raise ValueError(f"prompt {index} is text, but {model.no_tokenizer_reason}")
        ids = model.tokenizer.encode(prompt)
    elif _is_list(prompt) and all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in prompt):
        ids = [int(i) for i in prompt]
    else:
        raise ValueError(f"prompt {index} must be a string or a list of token ids, got {_shown(prompt)}")
    if not ids:
        raise ValueError(f"prompt {index} is empty: give at least one token")
    vocabulary = model.config.vocab_size
    if wrong := [i for i in ids if not 0 <= i < vocabulary]:
        raise ValueError(
            f"prompt {index}: token id {wrong[0]} is out of range, this model's ids are 0 to {vocabulary - 1}"
        )
    return ids


def _as_lists(value: Any) -> Any:
    """An array of token ids [T] or [B, T], numpy's or JAX's, as lists; anything else as it is."""
    if hasattr(value, "__array__") and getattr(value, "ndim", 0):
        return np.asarray(value).tolist()
    return value


def _is_list(value: object) -> bool:
    """Whether `value` is a sequence that may hold prompts or token ids: bytes may not."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def _make_request(model: ModelFacts, index: int, prompt: Prompt, params: SamplingParams) -> Request:
    ids = prompt_token_ids(model, index, prompt)
    limit, vocabulary = model.max_seq_len, model.config.vocab_size
    if len(ids) + params.max_tokens > limit:
        room = limit - len(ids)
        advice = f"use max_tokens={room} or less" if room > 0 else f"shorten the prompt to {limit - 1} tokens or less"
        raise ValueError(
            f"prompt {index} has {len(ids)} tokens, and with max_tokens={params.max_tokens} that is past the limit of "
            f"{limit} (max_seq_len): {advice}"
        )
    if params.stop and model.tokenizer is None:
        raise ValueError(f"stop strings need a tokenizer, but {model.no_tokenizer_reason}; or use stop_token_ids")
    if wrong := [i for i in params.stop_token_ids if i >= vocabulary]:
        raise ValueError(f"stop_token_ids: {wrong[0]} is out of range, this model's ids are 0 to {vocabulary - 1}")
    if wrong := [i for i in dict(params.logit_bias) if i >= vocabulary]:
        raise ValueError(f"logit_bias: {wrong[0]} is out of range, this model's ids are 0 to {vocabulary - 1}")
    for name in ("logprobs", "prompt_logprobs"):
        if (getattr(params, name) or 0) > vocabulary:
            raise ValueError(f"{name}={getattr(params, name)} is more than the {vocabulary} tokens of this model")
    eos = () if params.ignore_eos else model.eos_token_ids
    stop_ids = tuple(dict.fromkeys((*eos, *params.stop_token_ids)))
    if params.min_tokens and len(stop_ids) >= vocabulary:
        raise ValueError(f"min_tokens={params.min_tokens} cannot be kept: every token of this model is a stop token")
    return Request(index=index, prompt=ids, params=params, stop_ids=stop_ids)


def _shown(value: object) -> str:
    """The beginning of a value's repr, on one line."""
    return " ".join(repr(value).split())[:80]
