"""From a checked request to jobs: text to tokens, limits, sequences. Runs in worker threads: tokenizing takes time."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from moejax.decoding.requests import ModelFacts, Prompt, Request, make_requests, prompt_token_ids, split_prompts
from moejax.decoding.sampling_params import SamplingParams
from moejax.decoding.sequences import SequenceGroup, make_sequences
from moejax.serving.chat_messages import messages_of, template_variables
from moejax.serving.errors import ApiError, too_long
from moejax.serving.jobs import Echo, Mailbox, ServedRequest
from moejax.serving.limits import MAX_STOP_CHARACTERS, MAX_STOP_IDS, MAX_STOP_STRINGS
from moejax.serving.openai_requests import (
    DEFAULT_COMPLETION_TOKENS,
    ChatRequest,
    CompletionRequest,
    sampling_params,
)
from moejax.text.chat import encode_chat
from moejax.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # whose metrics need a package of their own
    from moejax.serving.engine import Engine

_numbers = itertools.count()  # of requests: without a seed, two with the same prompt have to draw differently

T = TypeVar("T")

# Makes a request for the engine, once there is its mailbox, which belongs to an event loop.
MakeServed = Callable[[Mailbox], ServedRequest]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prompt to be continued. echo: whether it is part of the answer."""

    request: Request
    echo: Echo | None = None


def prepare_requests(engine: "Engine", request: CompletionRequest | ChatRequest) -> list[MakeServed]:
    """The jobs that a request asks for.

    Raises:
        ApiError: for what this model or this server cannot do.
    """
    model = engine.model
    return [_served(model, one) for one in prepare(model, request, slots=engine.settings.max_batch)]


def prepare(model: ModelFacts, request: CompletionRequest | ChatRequest, *, slots: int) -> list[Prepared]:
    """The prompts that a request has continued, each by at most so many outputs as there are slots.

    Raises:
        ApiError: for what this model cannot do.
    """
    if isinstance(request, ChatRequest):
        return _prepare_chat(model, request, slots)
    return _prepare_completions(model, request, slots)


def _served(model: ModelFacts, prepared: Prepared) -> MakeServed:
    request = dataclasses.replace(prepared.request, index=next(_numbers))
    group = SequenceGroup(request=request, sequences=make_sequences(model, request))
    return lambda mailbox: ServedRequest(group=group, mailbox=mailbox, echo=prepared.echo)


def _prepare_completions(model: ModelFacts, request: CompletionRequest, slots: int) -> list[Prepared]:
    prompts = split_prompts_of(request)
    alone = bool(request.echo) and request.max_tokens == 0
    prepared = []
    for at, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            check_characters(model, len(prompt), param="prompt")
        ids = checked(lambda at=at, prompt=prompt: prompt_token_ids(model, at, prompt), param="prompt")
        asked = 1 if alone else request.max_tokens
        room = max(1, model.max_seq_len - len(ids))
        tokens = min(DEFAULT_COMPLETION_TOKENS, room) if asked is None else asked
        of_prompt = request.logprobs if request.echo else None
        params = sampling_params(request, max_tokens=tokens, logprobs=request.logprobs, prompt_logprobs=of_prompt)
        echo = Echo(text=_text_of(model, prompt, ids, params), alone=alone) if request.echo else None
        prepared.append(_prepared(model, slots, ids, params, param="prompt", echo=echo))
    return prepared


def _text_of(model: ModelFacts, prompt: Prompt, ids: Sequence[int], params: SamplingParams) -> str:
    """A prompt as text."""
    if isinstance(prompt, str) or model.tokenizer is None:
        return prompt if isinstance(prompt, str) else ""
    return model.tokenizer.decode(ids, skip_special_tokens=params.skip_special_tokens)


def _prepare_chat(model: ModelFacts, request: ChatRequest, slots: int) -> list[Prepared]:
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs", code="invalid_value")
    ids = chat_token_ids(model, request)
    if request.max_tokens is not None and request.max_completion_tokens not in (None, request.max_tokens):
        raise ApiError(400, "max_tokens and max_completion_tokens differ: give one", param="max_tokens")
    asked = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    tokens = max(1, model.max_seq_len - len(ids)) if asked is None else asked
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    params = sampling_params(request, max_tokens=tokens, logprobs=logprobs)
    limit = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    return [_prepared(model, slots, ids, params, param="messages", limit=limit)]


def chat_token_ids(model: ModelFacts, request: ChatRequest) -> list[int]:
    """The tokens of a chat, through the model's template.

    Raises:
        ApiError: for a model without one, and for messages that it cannot take.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ApiError(400, f"chat needs a tokenizer, but {model.no_tokenizer_reason}", param="messages")
    messages = messages_of(request.messages, tokenizer.chat_template or "")
    check_characters(model, sum(len(message.get("content", "")) for message in messages), param="messages")
    variables = template_variables(request)
    return checked(lambda: encode_chat(tokenizer, messages, template_kwargs=variables), param="messages")


def split_prompts_of(request: CompletionRequest) -> list[Prompt]:
    """The prompts of a request, of which a list of token ids is one."""
    return checked(lambda: split_prompts(request.prompt), param="prompt")


def _prepared(
    model: ModelFacts,
    slots: int,
    ids: Sequence[int],
    params: SamplingParams,
    *,
    param: str,
    limit: str = "max_tokens",
    echo: Echo | None = None,
) -> Prepared:
    """What continues a prompt, which came from the field `param`. `limit`: that of `max_tokens`."""
    if params.n > slots:
        raise ApiError(400, f"n={params.n} outputs, this server has {slots} slots", param="n")
    if (room := model.max_seq_len - len(ids)) < params.max_tokens:
        got = f"a prompt of {len(ids)} tokens and asks for {params.max_tokens} more ({limit})"
        if room < 1:
            raise too_long(got, model.max_seq_len, param=param)
        raise too_long(got, model.max_seq_len, param=limit, advice=f"ask for at most {room}")
    (request,) = checked(lambda: make_requests(model, [list(ids)], params, {}), param=None)
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
    return Prepared(request=request, echo=echo)


def check_characters(model: ModelFacts, count: int, *, param: str) -> None:
    """Raises ApiError for a text that cannot fit, before time goes into its tokens."""
    if model.tokenizer is None:
        return
    most = model.max_seq_len * longest_token(model.tokenizer)
    if count > most:
        raise too_long(f"{count} characters, of which they hold at most {most}", model.max_seq_len, param=param)


@lru_cache(maxsize=4)
def longest_token(tokenizer: Tokenizer) -> int:
    """Characters of the vocabulary's longest token."""
    return max(map(len, tokenizer.vocabulary.values()))


def checked(make: Callable[[], T], *, param: str | None) -> T:
    """What `make` returns; ApiError for its ValueError, about the field `param`."""
    try:
        return make()
    except ValueError as error:
        raise ApiError(400, str(error), param=param) from error
