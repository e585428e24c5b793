"""The messages of a chat as chat templates take them: contents that are plain text, arguments that are JSON."""

import json
from collections.abc import Sequence
from typing import Any

from moejax.serving.errors import ApiError
from moejax.serving.openai_requests import ChatMessage, ChatRequest

_TEXT_PARTS = {"text": "text", "refusal": "refusal"}  # kinds of parts, and the field that has their text


def messages_of(messages: Sequence[ChatMessage], template: str) -> list[dict[str, Any]]:
    """Messages for a chat template.

    Raises:
        ApiError: for a message without content, or with a part that is no text.
    """
    return [_plain(message, at, template) for at, message in enumerate(messages)]


def template_variables(request: ChatRequest) -> dict[str, Any]:
    """What a request has for the template beside its messages."""
    effort = {} if request.reasoning_effort is None else {"reasoning_effort": request.reasoning_effort}
    return {**effort, **(request.chat_template_kwargs or {})}


def _plain(message: ChatMessage, at: int, template: str) -> dict[str, Any]:
    fields = {name: value for name, value in message.model_dump().items() if value is not None}
    content = _text_of(message, at)
    calls = fields.get("tool_calls")
    if content is None and message.role != "assistant":
        raise ApiError(
            400,
            f"messages[{at}].content is missing: only an assistant's message may have none",
            param="messages",
            code="missing_required_parameter",
        )
    if calls is not None:
        fields["tool_calls"] = _with_arguments(calls)
    if content is None and "tool_calls" not in template:
        content = ""  # what a template that asks for nothing else can print
    return fields if content is None else {**fields, "content": content}


def _text_of(message: ChatMessage, at: int) -> str | None:
    if message.content is None or isinstance(message.content, str):
        return message.content
    texts = []
    for part in message.content:
        kind = part.get("type")
        text = part.get(_TEXT_PARTS[kind]) if isinstance(kind, str) and kind in _TEXT_PARTS else None
        if not isinstance(text, str):
            raise ApiError(
                400,
                f"messages[{at}].content holds a part that is no text (type {kind!r:.40}): this model reads text only",
                param="messages",
                code="invalid_value",
            )
        texts.append(text)
    return "".join(texts)


def _with_arguments(calls: Any) -> Any:
    """Tool calls whose arguments are objects, as templates print them; OpenAI's API has them as text of JSON."""
    if not isinstance(calls, list):
        return calls
    return [
        {**call, "function": {**function, "arguments": _parsed(function.get("arguments"))}}
        if isinstance(call, dict) and isinstance(function := call.get("function"), dict)
        else call
        for call in calls
    ]


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):  # models also call with what is no JSON: then it is text
        return arguments
    return value if isinstance(value, dict) else arguments
