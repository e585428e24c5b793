"""The files beside a tokenizer.json or tokenizer.model: one reading of what they say, for encoding, hiding and chats.

Where they disagree, the one counts that transformers 5 takes: tokenizer_config.json with its `added_tokens_decoder`;
where that is not there, special_tokens_map.json before tokenizer_config.json, and added_tokens.json.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moejax._convert.errors import CheckpointError, shown
from moejax._convert.files import JSON_LIMIT, is_inside, is_there, opened, parse_object

GENERATION = "generation_config.json"

Prefix = Literal["always", "first", "never"]
Token = dict[str, Any]  # as `moejax.text.encoder` takes it

_STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_EXTRA = ("extra_special_tokens", "additional_special_tokens")


@dataclass(frozen=True, kw_only=True)
class TokenFiles:
    """What the files of a folder say about its tokens.

    named: text of the tokens that have a name, such as "bos_token".
    special: text of the tokens that are special by their names or a list, whatever the vocabulary says of them.
    added: tokens beside the vocabulary or with other properties than there, in the order in which they are added; what
      `moejax.text.encoder` takes.
    adds_bos: whether prompts begin with BOS, None where no file says so.
    prefix: which parts of a text SentencePiece puts a space in front of, between the special tokens in it.
    chat_templates: Jinja sources by name; "default" is the one for chats.
    repeated: names of chat templates that stand there with different texts, of which the last counts.
    """

    named: Mapping[str, str]
    special: frozenset[str]
    added: list[Token]
    adds_bos: bool | None
    prefix: Prefix
    chat_templates: Mapping[str, str]
    repeated: tuple[str, ...]


def read_token_files(folder: Path) -> TokenFiles:
    """Reads what the files beside a tokenizer say.

    Raises:
      CheckpointError: one is malformed, or a link that leads nowhere or out of the folder.
    """
    path = folder / "tokenizer_config.json"
    config = read_object(folder, path.name)
    listed = _listed(config.get("added_tokens_decoder"), path)
    said = {key: (value, path) for key, value in config.items()}
    if listed is None:
        path = folder / "special_tokens_map.json"
        said |= {key: (value, path) for key, value in read_object(folder, path.name).items() if value}
    named, extra = _named_and_extra(said)
    special = frozenset(token["content"] for token in (*named.values(), *extra))
    if listed is None:
        listed = _legacy(folder, special)
    names = {token["content"] for token in named.values()}
    added = [{**token, "special": token["special"] or token["content"] in names} for token in listed]
    # Named and extra ones count only where no file has said more of them, and each only once.
    more = ({**token, "special": True} for token in (*named.values(), *extra))
    added += {tuple(sorted(token.items(), key=str)): token for token in more}.values()
    templates, repeated = _read_chat_templates(folder, config)
    return TokenFiles(
        named={name: token["content"] for name, token in named.items()},
        added=added,
        special=special,
        adds_bos=_flag(config, "add_bos_token", folder),
        prefix=_prefix(config, folder),
        chat_templates=templates,
        repeated=repeated,
    )


def find_file(folder: Path, name: str) -> Path | None:
    """The file of that name, None where there is none.

    Raises:
      CheckpointError: it is no regular file, or leads out of the folder: whoever made the folder has then chosen a file
        of this machine. The blobs of the Hugging Face cache are no other place.
    """
    path = folder / name
    if not is_there(path):
        return None
    if not is_inside(path, folder):
        raise CheckpointError(
            f"{path} is a link to {path.resolve()}, out of its folder; put a copy of the file in its place"
        )
    return path


def read_bytes(folder: Path, name: str) -> bytes | None:
    """What is in the file of that name, None where there is none.

    Raises:
      CheckpointError: it cannot be read, or is too large.
    """
    path = find_file(folder, name)
    if path is None:
        return None
    with opened(path) as stream:
        if (size := os.fstat(stream.fileno()).st_size) > JSON_LIMIT:
            raise CheckpointError(f"{path} has {size} bytes, no tokenizer's file has more than {JSON_LIMIT}; remove it")
        return stream.read()


def read_text(folder: Path, name: str) -> str | None:
    """The text in the file of that name, None where there is none.

    Raises:
      CheckpointError: it cannot be read as UTF-8.
    """
    raw = read_bytes(folder, name)
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / name}: cannot be read as UTF-8 text ({error}); save it as UTF-8") from error


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in the file of that name, an empty one where there is none.

    Raises:
      CheckpointError: it is anything else.
    """
    raw = read_bytes(folder, name)
    return {} if raw is None else parse_object(str(folder / name), raw)


def special_id(generation: Mapping[str, Any], name: str, vocabulary: Mapping[int, str], folder: Path) -> int | None:
    """The id that generation_config.json has for "bos" or "eos", the first of several; None where it has none.

    Raises:
      CheckpointError: it is no id of a token.
    """
    value = generation.get(f"{name}_token_id")
    first = value[0] if isinstance(value, list) and value else value
    if first is None:
        return None
    if isinstance(first, bool) or not isinstance(first, int) or first not in vocabulary:
        raise CheckpointError(
            f"{folder / GENERATION}: {name}_token_id must be the id of a token of tokenizer.json, got {shown(first)}"
        )
    return first


def _named_and_extra(said: Mapping[str, tuple[Any, Path]]) -> tuple[dict[str, Token], list[Token]]:
    """Tokens with a name, and those that are special without one."""
    named = {}
    for name in (*_STANDARD, *said):  # the order in which new ones get their ids
        value, path = said.get(name, (None, Path()))
        has_token = isinstance(value, str) or (isinstance(value, dict) and "content" in value)
        if value and (name in _STANDARD or (name.endswith("_token") and has_token)):
            named[name] = _token(value, name, path)
    name, value, path = next(((key, *said[key]) for key in _EXTRA if key in said and said[key][0]), ("", [], Path()))
    if isinstance(value, dict):
        return named | {name: _token(token, name, path) for name, token in value.items()}, []
    if not isinstance(value, list):
        raise CheckpointError(f"{path}: {name} must be a list of tokens, got {shown(value)}")
    return named, [_token(token, name, path) for token in value]


def _token(value: Any, name: str, path: Path) -> Token:
    """A token as text, or as an object with its text and properties."""
    fields = value if isinstance(value, dict) else {"content": value, "special": True}
    flags = {flag: fields[flag] for flag in _FLAGS if flag in fields}
    content = fields.get("content")
    if not isinstance(content, str) or not content or not all(isinstance(flag, bool) for flag in flags.values()):
        raise CheckpointError(f"{path}: {name} must be a token, as text or with its content, got {shown(value)}")
    return {"special": False, "keeps": False, **flags, "content": content, "id": None}


def _listed(value: Any, path: Path) -> list[Token] | None:
    """The tokens of added_tokens_decoder, in the order of their ids."""
    if value is None:
        return None
    if not isinstance(value, dict) or not all(key.isdecimal() and len(key) < 10 for key in value):
        raise CheckpointError(f"{path}: added_tokens_decoder must be an object of tokens by id, got {shown(value)}")
    ids = sorted(map(int, value))
    by_id = {int(key): token for key, token in value.items()}
    return [_token(by_id[i], f"added_tokens_decoder[{i}]", path) | {"id": i} for i in ids]


def _legacy(folder: Path, special: frozenset[str]) -> list[Token]:
    """The tokens of added_tokens.json."""
    found = read_object(folder, "added_tokens.json")
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**31 for i in found.values()):
        raise CheckpointError(f"{folder / 'added_tokens.json'}: expected ids by token, got {shown(found)}")
    return [
        {"content": text, "id": i, "special": text in special, "normalized": text not in special, "keeps": True}
        for text, i in sorted(found.items(), key=lambda pair: pair[1])
        if text
    ]


def _flag(config: Mapping[str, Any], name: str, folder: Path) -> bool | None:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: {name} must be true or false, got {shown(value)}")
    return value


def _prefix(config: Mapping[str, Any], folder: Path) -> Prefix:
    if _flag(config, "add_prefix_space", folder) is False:
        return "never"
    return "first" if _flag(config, "legacy", folder) is False else "always"


def _read_chat_templates(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    """chat_template.jinja (transformers 5) before tokenizer_config.json's string or named templates, and the names that
    stand there with different texts. As in transformers, the last one counts."""
    text = read_text(folder, "chat_template.jinja")
    if text is not None:
        return {"default": text}, ()
    value = config.get("chat_template")
    if value is None or isinstance(value, str):
        return {} if value is None else {"default": value}, ()
    path = folder / "tokenizer_config.json"
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        entries = [(entry.get("name"), entry.get("template")) for entry in value]
    else:
        raise CheckpointError(
            f"{path}: chat_template must be a string or a list of named templates, got {shown(value)}"
        )
    for name, source in entries:
        if not isinstance(name, str) or not isinstance(source, str):
            raise CheckpointError(f"{path}: the chat template named {name} must be a string, got {shown(source)}")
    found = dict(entries)
    return found, tuple(dict.fromkeys(name for name, source in entries if source != found[name]))
