"""Prompts, from flags and standard input to token ids: before JAX starts, so that a mistake in them is told at once."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from moejax.cli import console
from moejax.cli.options import PromptFlags
from moejax.decoding.requests import ModelFacts
from moejax.runtime.paths import user_path

_STDIN = ("-", "@-")
MOST_BYTES = 64_000_000  # of one prompt


def encode_prompts(facts: ModelFacts, flags: PromptFlags) -> list[list[int]]:
    """Token ids of each prompt, texts first. With --chat a text is what the user says, after the system message.

    Raises:
        ValueError: for no prompt, one that cannot be read or that this checkpoint cannot encode, and for flags that do
            not go together.
    """
    prompts = read_prompts(flags.prompt or [], flags.token_ids or [])
    if flags.system is not None and not flags.chat:
        raise ValueError("--system is a message of a chat; add --chat")
    if flags.chat and flags.token_ids:
        raise ValueError("--chat puts text into a template; it cannot be used with --token-ids")
    return [
        encode(facts, prompt, chat=flags.chat, system=flags.system) if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]


def read_prompts(texts: Sequence[str], token_ids: Sequence[str]) -> list[str | list[int]]:
    """The prompts that flags give: texts (where "-" is standard input, and @FILE a file), then token ids.

    Raises:
        ValueError: for no prompt at all, an empty one, or one that cannot be read.
    """
    if sum(text in _STDIN for text in texts) > 1:
        raise ValueError("--prompt - reads standard input, which can only be read once; give it once")
    prompts = [*map(_text_of, texts), *map(_parse_ids, token_ids)]
    if not prompts:
        raise ValueError(
            'there is no prompt; give --prompt "TEXT", --prompt - for standard input, --token-ids "0 17 42", or '
            "--chat for a conversation"
        )
    for index, prompt in enumerate(prompts):
        if prompt == "":
            raise ValueError(f"prompt {index} is empty: give at least one character, or --token-ids")
        if isinstance(prompt, str) and not is_unicode(prompt):
            raise ValueError(f"prompt {index} is not UTF-8 text ({prompt!r:.80}); convert it with iconv")
    return prompts


def encode(facts: ModelFacts, text: str, *, chat: bool, system: str | None) -> list[int]:
    """The token ids of a text, or of a chat in which a user says it.

    Raises:
        ValueError: for a model without a tokenizer, or without a chat template.
    """
    if facts.tokenizer is None:
        raise ValueError(f"--prompt is text, but {facts.no_tokenizer_reason}")
    if not chat:
        return facts.tokenizer.encode(text)
    from moejax.text.chat import encode_chat  # here, because jinja2 is only needed for chats

    messages = [] if system is None else [{"role": "system", "content": system}]
    return encode_chat(facts.tokenizer, [*messages, {"role": "user", "content": text}])


def _text_of(value: str) -> str:
    """The text that a value of --prompt stands for."""
    if value in _STDIN:
        return _read_stdin()
    if value.startswith("@@"):
        return value[1:]
    return _read_file(Path(value[1:])) if value.startswith("@") else value


def _read_file(path: Path) -> str:
    try:
        with user_path(path, "the file of --prompt").open("rb") as stream:
            data = _read(stream, f"--prompt @{path}")
    except OSError as error:
        raise ValueError(
            f"--prompt @{path}: {error.strerror or error}; a prompt that itself begins with @ is written with @@"
        ) from error
    if not (text := decoded(data, str(path))):
        raise ValueError(f"--prompt @{path}: the file is empty")
    return text


def _read(stream: BinaryIO, what: str) -> bytes:
    """All of it. Raises ValueError for more than any context holds, without reading on: a device has no end."""
    data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{what} holds more than {MOST_BYTES:,} bytes, and no context is as long; give a part of it")
    return data


def _read_stdin() -> str:
    if sys.stdin.isatty():
        console.remark("reading the prompt from the terminal, end it with Ctrl-D on a line of its own")
    text = decoded(_read(sys.stdin.buffer, "--prompt -"), "standard input")
    if not text:
        raise ValueError("--prompt - reads standard input, which is empty; pipe the prompt's text into it")
    return text


def decoded(data: bytes, what: str) -> str:
    """Text of UTF-8 without its last line break. what: where it comes from.

    Raises:
        ValueError: for other bytes.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{what} is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x}); convert it with iconv"
        ) from error
    # A final line break belongs to the file or to echo, not to the prompt; the shell's $(...) drops it as well.
    return text.removesuffix("\n").removesuffix("\r")


def is_unicode(text: str) -> bool:
    """Whether text from the command line was UTF-8: Python keeps other bytes as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _parse_ids(value: str) -> list[int]:
    """Token ids separated by spaces or commas, brackets allowed: `0 17 42`, `[0, 17, 42]`."""
    words = value.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    if not words or not all(word.isascii() and word.isdigit() and len(word) < 19 for word in words):
        raise ValueError(f'--token-ids must be token ids, as in "0 17 42", got {value!r}')
    return [int(word) for word in words]
