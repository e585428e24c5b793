"""Chat messages to a prompt, through the checkpoint's own Jinja template (`moejax.text.template`)."""

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from moejax.text.limited import Limited, LimitReached
from moejax.text.tokenizer import Tokenizer

Message = Mapping[str, Any]

MAX_TEMPLATE = 1 << 20  # characters; the longest published templates have about 20,000
TEMPLATE_SECONDS = 2  # of processor time; a chat of a million characters takes less than a tenth of one
TEMPLATE_MEMORY = 1 << 29  # bytes


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """The token ids of a chat. Templates write BOS themselves; a checkpoint that wants it gets it once in any case.

    Args:
      tokenizer: of the checkpoint, with its chat template.
      messages: as `render_chat` takes them.
      add_generation_prompt: whether the prompt ends with the beginning of the assistant's answer.
      template_kwargs: further variables for the template, as `render_chat` takes them.

    Raises:
      ValueError: there is no chat template, or `render_chat` or `Tokenizer.encode` raises.
    """
    if tokenizer.chat_template is None:
        raise ValueError(missing_template_message(tokenizer))
    return tokenizer.encode(
        render_chat(
            tokenizer.chat_template,
            messages,
            named=tokenizer.named,
            add_generation_prompt=add_generation_prompt,
            template_kwargs=template_kwargs,
        )
    )


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    named: Mapping[str, str],
    add_generation_prompt: bool = True,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The text of a chat, as transformers' `apply_chat_template` renders it.

    Args:
      template: Jinja source.
      messages: mappings with the strings `role` and `content`; further keys are passed on if they are JSON, and left
        out where they are None. An assistant's `content` may be None or missing: it is then empty or, beside
        `tool_calls`, left out. The role `developer` is `system` for a template that does not know it.
      named: text of tokens by the names that templates have for them ("bos_token", "eos_token", "pad_token", ...).
      add_generation_prompt: whether the text ends with the beginning of the assistant's answer.
      template_kwargs: further variables of JSON values, such as `reasoning_effort` or `enable_thinking`. A template
        that does not ask for one ignores it.

    Raises:
      ValueError: a message or a variable has the wrong form; the template is not valid, refuses the messages (roles
        that do not alternate, say), reaches for Python internals, or does more work than any chat needs.
    """
    ours = {
        **named,
        "messages": _plain_messages(template, messages),
        "add_generation_prompt": add_generation_prompt,
        "tools": None,  # templates ask `tools is not none`: undefined would mean that there are some
        "documents": None,
    }
    variables = _plain_variables(template_kwargs or {}, ours.keys() | {"bos_token", "eos_token"}) | ours
    if len(template) > MAX_TEMPLATE:
        raise ValueError(f"the chat template has {len(template)} characters, the limit is {MAX_TEMPLATE}")
    try:
        return _limited(template).ask(variables, seconds=TEMPLATE_SECONDS)
    except LimitReached as error:
        raise ValueError(f"the chat template does more than a chat needs and was stopped: it {error}") from error


@lru_cache(maxsize=8)
def _limited(template: str) -> Limited:
    setup = {"template": template}
    return Limited(task="template", setup=setup, seconds=TEMPLATE_SECONDS, memory=TEMPLATE_MEMORY)


def missing_template_message(tokenizer: Tokenizer) -> str:
    """One sentence for the caller that has a chat for a tokenizer without a default chat template."""
    if tokenizer.chat_templates:
        names = sorted(tokenizer.chat_templates)
        program = (
            'import json; found = json.load(open("tokenizer_config.json", encoding="utf-8-sig"))["chat_template"];'
            ' found = found if isinstance(found, dict) else {entry["name"]: entry["template"] for entry in found};'
            f' open("chat_template.jinja", "w", encoding="utf-8").write(found[{json.dumps(names[0])}])'
        )
        return (
            f"this checkpoint has chat templates named {', '.join(map(repr, names))}, but none named 'default': write"
            " the one you mean to chat_template.jinja, which counts before them, by running in the checkpoint's folder:"
            " python -c " + shlex.quote(program)
        )
    return (
        "this checkpoint has no chat template (neither chat_template.jinja nor chat_template in"
        " tokenizer_config.json), so it is probably no chat model: give the text as a plain prompt"
    )


def _plain_messages(template: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A copy of nothing but JSON values: no method of a caller's object is in a template's reach."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(f"expected a list of at least one message with role and content, got {messages!r:.80}")
    plain = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {index}: expected a mapping with role and content, got {message!r:.80}")
        # As transformers does: templates ask whether a key is there, and would print None.
        fields = {key: value for key, value in message.items() if value is not None}
        wanted = ["role", "content"]
        if fields.get("role") == "assistant" and "content" not in fields:
            if fields.get("tool_calls"):
                wanted.remove("content")
            else:
                fields["content"] = ""
        for key in wanted:
            if not isinstance(fields.get(key), str):
                got = repr(message[key]) if key in message else f"only the keys {list(message)!r}"
                raise ValueError(f"message {index}: expected a string for {key!r}, got {got:.80}")
        if fields["role"] == "developer" and "developer" not in template:
            fields["role"] = "system"
        plain.append(fields)
    return _json(plain, "messages")


def _plain_variables(variables: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """A copy of the caller's variables for a template, of nothing but JSON values."""
    for name in variables:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"template_kwargs: expected names of variables, got {name!r:.80}")
        if name in taken:
            raise ValueError(f"template_kwargs: {name!r} has a value already, which cannot be replaced; leave it out")
    return _json(dict(variables), "template_kwargs")


def _json(value: Any, what: str) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} may hold JSON values only: {error}") from error
