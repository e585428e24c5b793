"""The bodies of `POST /tokenize` and `/detokenize`, which are vLLM's."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from moejax.serving.openai_requests import ChatMessage, Items


class TokenizeRequest(BaseModel):
    """The tokens of a text, or of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: str | None = None
    messages: Items[ChatMessage] | None = None
    add_special_tokens: bool = Field(True, description="With `prompt`: BOS in front, where the model wants it.")
    add_generation_prompt: bool = Field(True, description="With `messages`: the beginning of an answer behind them.")
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(BaseModel):
    """The text of tokens, special ones included."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    tokens: Items[int]
