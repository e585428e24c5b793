"""From a checked request to jobs: text to tokens, limits, sequences. Runs in worker threads: tokenizing takes time."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

from moejax.decoding.requests import Prompt, make_requests, prompt_token_ids, split_prompts
from moejax.decoding.sampling_params import SamplingParams
from moejax.decoding.sequences import SequenceGroup, make_sequences
from moejax.loading import Model
from moejax.serving.engine import Engine
from moejax.serving.errors import ApiError
from moejax.serving.jobs import Mailbox, ServedRequest
from moejax.serving.limits import MAX_STOP_CHARACTERS, MAX_STOP_IDS, MAX_STOP_STRINGS
from moejax.serving.openai_requests import (
    DEFAULT_COMPLETION_TOKENS,
    ChatRequest,
    CompletionRequest,
    messages_of,
    sampling_params,
)
from moejax.text.chat import encode_chat
from moejax.text.tokenizer import Tokenizer

_numbers = itertools.count()  # of requests: without a seed, two with the same prompt have to draw differently

T = TypeVar("T")

# Makes a request for the engine, once there is its mailbox, which belongs to an event loop.
MakeServed = Callable[[Mailbox], ServedRequest]


def prepare_requests(engine: Engine, request: CompletionRequest | ChatRequest) -> list[MakeServed]:
    """The jobs that a request asks for.

    Raises:
        ApiError: for what this model or this server cannot do.
    """
    return _prepare_chat(engine, request) if isinstance(request, ChatRequest) else _prepare_completions(engine, request)


def _prepare_completions(engine: Engine, request: CompletionRequest) -> list[MakeServed]:
    """A job per prompt.

    Raises:
        ApiError: for what this model or this server cannot do.
    """
    model = engine.model
    prompts = split_prompts_of(request)
    if len(prompts) > engine.settings.max_queue:
        raise ApiError(
            400, f"{len(prompts)} prompts in one request, the most are {engine.settings.max_queue}", param="prompt"
        )
    prepared = []
    for at, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            _check_characters(model, len(prompt))
        ids = _checked(lambda at=at, prompt=prompt: prompt_token_ids(model, at, prompt), param="prompt")
        asked = request.max_tokens
        room = max(1, model.max_seq_len - len(ids))
        tokens = min(DEFAULT_COMPLETION_TOKENS, room) if asked is None else asked
        prepared.append(
            _prepared(engine, model, ids, sampling_params(request, max_tokens=tokens, logprobs=request.logprobs))
        )
    return prepared


def _prepare_chat(engine: Engine, request: ChatRequest) -> list[MakeServed]:
    """The job of a chat.

    Raises:
        ApiError: for what this model or this server cannot do.
    """
    model = engine.model
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ApiError(400, f"chat needs a tokenizer, but {model.no_tokenizer_reason}", param="messages")
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs")
    messages = messages_of(request)
    _check_characters(model, sum(len(message["content"]) for message in messages))
    ids = _checked(lambda: encode_chat(tokenizer, messages), param="messages")
    if request.max_tokens is not None and request.max_completion_tokens not in (None, request.max_tokens):
        raise ApiError(400, "max_tokens and max_completion_tokens differ: give one", param="max_tokens")
    asked = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    tokens = max(1, model.max_seq_len - len(ids)) if asked is None else asked
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return [_prepared(engine, model, ids, sampling_params(request, max_tokens=tokens, logprobs=logprobs))]


def split_prompts_of(request: CompletionRequest) -> list[Prompt]:
    """The prompts of a request, of which a list of token ids is one."""
    return _checked(lambda: split_prompts(request.prompt), param="prompt")


def _prepared(engine: Engine, model: Model, ids: Sequence[int], params: SamplingParams) -> MakeServed:
    if params.n > engine.settings.max_batch:
        raise ApiError(400, f"n={params.n} outputs, this server has {engine.settings.max_batch} slots", param="n")
    (request,) = _checked(lambda: make_requests(model, [list(ids)], params, {}), param=None)
    if len(request.stop_ids) > MAX_STOP_IDS:
        raise ApiError(
            400,
            f"at most {MAX_STOP_IDS} stop tokens, EOS included, got {len(request.stop_ids)}",
            param="stop_token_ids",
        )
    if len(params.stop) > MAX_STOP_STRINGS or sum(map(len, params.stop)) > MAX_STOP_CHARACTERS:
        raise ApiError(
            400,
            f"at most {MAX_STOP_STRINGS:,} stop strings of {MAX_STOP_CHARACTERS:,} characters together, got "
            f"{len(params.stop):,} of {sum(map(len, params.stop)):,}",
            param="stop",
        )
    request = dataclasses.replace(request, index=next(_numbers))
    group = SequenceGroup(request=request, sequences=make_sequences(model, request))
    return lambda mailbox: ServedRequest(group=group, mailbox=mailbox)


def _check_characters(model: Model, count: int) -> None:
    """Refuses a text that cannot fit before time goes into its tokens."""
    if model.tokenizer is None:
        return
    most = model.max_seq_len * longest_token(model.tokenizer)
    if count > most:
        raise ApiError(
            400,
            f"a text of {count} characters is past the limit of {model.max_seq_len} tokens (max_seq_len), which hold "
            f"at most {most}: shorten it",
        )


@lru_cache(maxsize=4)
def longest_token(tokenizer: Tokenizer) -> int:
    """Characters of the vocabulary's longest token."""
    return max(map(len, tokenizer.vocabulary.values()))


def _checked(make: Callable[[], T], *, param: str | None) -> T:
    try:
        return make()
    except ValueError as error:
        raise ApiError(400, str(error), param=param) from error
