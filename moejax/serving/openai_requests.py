"""The bodies of `POST /v1/completions` and `/v1/chat/completions`, and what they ask of the engine.

Fields are OpenAI's and vLLM's, strictly typed. A field that would change the output and is not supported is refused by
name, whether it is known (`NEUTRAL` has the values that change nothing) or not.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from moejax.decoding.sampling_params import SamplingParams
from moejax.serving.errors import ApiError
from moejax.serving.limits import MAX_LOGPROBS
from moejax.serving.wrong_fields import unknown_field

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's

# Fields of OpenAI's API that are understood only as long as they ask for nothing, and the values that do. Null always
# asks for nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

T = TypeVar("T")
Items = Annotated[list[T], Field(fail_fast=True)]  # a list that is wrong throughout is one mistake, not one per item


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool | None = Field(None, description="Ignored: nothing is ever added to chunks.")


class GenerationRequest(BaseModel):
    """What both kinds of requests have in common."""

    model_config = ConfigDict(extra="allow", strict=True)  # unknown fields are refused below, with a hint

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | Items[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(
        None, description="Added to the logits of tokens, which are named by their ids: -100 to 100."
    )
    user: Any = Field(None, description="Ignored.")
    metadata: Any = Field(None, description="Ignored.")
    safety_identifier: Any = Field(None, description="Ignored.")
    prompt_cache_key: Any = Field(None, description="Ignored.")
    prompt_cache_options: Any = Field(None, description="Ignored.")
    prompt_cache_retention: Any = Field(None, description="Ignored.")
    # vLLM's
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: Items[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    # ours
    return_progress: bool | None = Field(
        None, description="With `stream`: chunks say each token's id and text, and the seconds since the request came."
    )
    return_routed_experts: bool | None = Field(
        None, description="With `stream`: report which experts each token was routed to."
    )


class CompletionRequest(GenerationRequest):
    """Continue one prompt or several."""

    prompt: str | Items[str] | Items[int] | Items[Items[int]]
    logprobs: int | None = None
    echo: bool | None = Field(None, description="The prompt is part of the text, and of the log-probabilities.")


class ChatMessage(BaseModel):
    """One message. Further fields are passed on to the chat template."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str | Items[dict[str, Any]] | None = Field(None, description="Only an assistant's may be missing.")


class ChatRequest(GenerationRequest):
    """Answer a chat."""

    messages: Items[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = Field(None, description="For the chat template.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the chat template.")


def check_fields(request: GenerationRequest) -> None:
    """Raises ApiError for a field that would change the output and is not supported, by name."""
    for name, value in (request.model_extra or {}).items():
        if value is None or any(type(value) is type(one) and value == one for one in NEUTRAL.get(name, ())):
            continue
        if name in NEUTRAL:
            message = f"{name} is not supported by this server: leave it out"
            raise ApiError(400, message, param=name, code="unsupported_parameter")
        raise unknown_field(name, type(request).model_fields, param=name)
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options is for answers that are streamed: add stream=true", param="stream_options")
    for name in ("return_progress", "return_routed_experts"):
        if getattr(request, name) and not request.stream:
            raise ApiError(400, f"{name} is part of streams: add stream=true", param=name)


def sampling_params(
    request: GenerationRequest, *, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None = None
) -> SamplingParams:
    """The sampling parameters of a request; where it says nothing, OpenAI's defaults.

    Raises:
        ApiError: for a value out of range, or of a field that has a limit here.
    """
    given = {name: value for name in _SAMPLING_FIELDS if (value := getattr(request, name)) is not None}
    if logprobs is not None and logprobs > MAX_LOGPROBS:
        name = "top_logprobs" if isinstance(request, ChatRequest) else "logprobs"
        message = f"{name} of at most {MAX_LOGPROBS} tokens, got {logprobs}"
        raise ApiError(400, message, param=name, code="invalid_value")
    if request.logit_bias is not None:
        given["logit_bias"] = _bias(request.logit_bias)
    try:
        return SamplingParams(
            **{"temperature": 1.0, **given},
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
    except ValueError as error:
        raise ApiError(400, str(error), param=_param_in(str(error)), code="invalid_value") from error


_SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "n",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "return_routed_experts",
)


def _bias(given: Mapping[str, float]) -> dict[int, float]:
    """Biases by token id, which JSON's objects have as text."""
    for name in given:
        if not (name.isascii() and name.isdecimal() and len(name) < 10):
            raise ApiError(
                400,
                f"logit_bias must have token ids for its keys, got {_shown(name)}",
                param="logit_bias",
                code="invalid_value",
            )
    return {int(name): value for name, value in given.items()}


def _param_in(message: str) -> str | None:
    """The field that a message of `SamplingParams` begins with."""
    word = message.replace("=", " ").split(" ", 1)[0]
    return word if word in (*_SAMPLING_FIELDS, "max_tokens", "logprobs", "logit_bias") else None


def _shown(name: str) -> str:
    return repr(name[:80])
