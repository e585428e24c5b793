"""The bodies of `POST /v1/completions` and `/v1/chat/completions`, and what they ask of the engine.

Fields are OpenAI's and vLLM's, strictly typed. A field that would change the output and is not supported is refused by
name, whether it is known (`_NEUTRAL` has the values that change nothing) or not.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from moejax.decoding.sampling_params import SamplingParams
from moejax.serving.errors import ApiError
from moejax.serving.limits import MAX_LOGPROBS

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's

# Fields of OpenAI's API that are understood only as long as they ask for nothing, and the values that do. Null always
# asks for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}


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
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    user: Any = Field(None, description="Ignored.")
    metadata: Any = Field(None, description="Ignored.")
    safety_identifier: Any = Field(None, description="Ignored.")
    prompt_cache_key: Any = Field(None, description="Ignored.")
    prompt_cache_retention: Any = Field(None, description="Ignored.")
    # vLLM's
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
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

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None


class ChatMessage(BaseModel):
    """One message. Further fields are passed on to the chat template."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str | list[dict[str, Any]]


class ChatRequest(GenerationRequest):
    """Answer a chat."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


def check_fields(request: GenerationRequest) -> None:
    """Raises ApiError for a field that would change the output and is not supported, by name."""
    for name, value in (request.model_extra or {}).items():
        if value is None or any(type(value) is type(one) and value == one for one in _NEUTRAL.get(name, ())):
            continue
        what = f"{name} is not supported by this server" if name in _NEUTRAL else f"unknown field {_shown(name)}"
        raise ApiError(400, f"{what}: leave it out", param=name[:80])
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options is for answers that are streamed: add stream=true", param="stream_options")
    for name in ("return_progress", "return_routed_experts"):
        if getattr(request, name) and not request.stream:
            raise ApiError(400, f"{name} is part of streams: add stream=true", param=name)


def sampling_params(request: GenerationRequest, *, max_tokens: int, logprobs: int | None) -> SamplingParams:
    """The sampling parameters of a request; where it says nothing, OpenAI's defaults.

    Raises:
        ApiError: for a value out of range, or of a field that has a limit here.
    """
    given = {name: value for name in _SAMPLING_FIELDS if (value := getattr(request, name)) is not None}
    if logprobs is not None and logprobs > MAX_LOGPROBS:
        raise ApiError(400, f"log-probabilities of at most {MAX_LOGPROBS} tokens, got {logprobs}", param="logprobs")
    try:
        return SamplingParams(**{"temperature": 1.0, **given}, max_tokens=max_tokens, logprobs=logprobs)
    except ValueError as error:
        raise ApiError(400, str(error), param=_param_in(str(error))) from error


def messages_of(request: ChatRequest) -> list[dict[str, Any]]:
    """The messages with contents that are plain text, as chat templates take them.

    Raises:
        ApiError: for a part of a message that is no text.
    """
    return [{**message.model_dump(), "content": _text_of(message, at)} for at, message in enumerate(request.messages)]


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


def _text_of(message: ChatMessage, at: int) -> str:
    if isinstance(message.content, str):
        return message.content
    texts = []
    for part in message.content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(
                400,
                f"messages[{at}].content holds a part that is no text: this model reads text only",
                param="messages",
            )
        texts.append(part["text"])
    return "".join(texts)


def _param_in(message: str) -> str | None:
    """The field that a message of `SamplingParams` begins with."""
    word = message.replace("=", " ").split(" ", 1)[0]
    return word if word in (*_SAMPLING_FIELDS, "max_tokens", "logprobs") else None


def _shown(name: str) -> str:
    return repr(name[:80])
