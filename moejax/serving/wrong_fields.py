"""What is wrong with the fields of a body, in our words: pydantic finds it, and its own are about Python."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from moejax.serving.errors import ApiError

# What a field has to be, by the error that pydantic has for anything else.
_WANTED: Mapping[str, str] = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}
# Fields of more than one form: for each of them pydantic says something else. The key ends the path of the field.
_FORMS: Mapping[tuple[int, str], str] = {
    (1, "prompt"): "a string, a list of strings, a list of token ids, or a list of such lists",
    (1, "stop"): "a string or a list of strings",
    (3, "content"): "a string or a list of objects",
}
_KINDS: Mapping[type, str] = {
    type(None): "null",
    bool: "a boolean",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def wrong_field(error: ValidationError, kind: type[BaseModel]) -> ApiError:
    """The first thing that is wrong with a body of `kind`, by the name of its field."""
    first = error.errors(include_url=False, include_context=False)[0]
    where, got = first["loc"], first["input"]
    if not where or first["type"] not in (*_WANTED, "missing", "extra_forbidden"):  # strings and keys that are no text
        said = first["msg"][:1].lower() + first["msg"][1:]
        return ApiError(400, f"{_path(where) or 'the body'}: {said}", param=str(where[0])[:80] if where else None)
    param = str(where[0])[:80]
    if first["type"] == "missing":
        return ApiError(400, f"{_path(where)} is missing: add it", param=param, code="missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return unknown_field(str(where[-1]), _known(kind, where), param=param)
    wanted = _WANTED[first["type"]]
    for (length, name), forms in _FORMS.items():
        if len(where) > length and where[length - 1] == name:
            where, wanted = where[:length], forms
    return ApiError(400, f"{_path(where)} must be {wanted}, got {_shown(got)}", param=param, code="invalid_type")


def unknown_field(name: str, known: Iterable[str], *, param: str) -> ApiError:
    """The error for a field that a body cannot have, with the one of `known` that may have been meant."""
    near = get_close_matches(name[:80], list(known), n=1, cutoff=0.7)
    hint = f": did you mean {near[0]}?" if near else ": leave it out"
    return ApiError(400, f"unknown field {name[:80]!r}{hint}", param=param[:80], code="unknown_parameter")


def _known(kind: type[BaseModel], where: Sequence[int | str]) -> list[str]:
    """The fields of the object that holds the field at `where`."""
    for part in where[:-1]:
        inner = kind.model_fields[str(part)].annotation
        kind = next(one for one in getattr(inner, "__args__", ()) if issubclass(one, BaseModel))
    return list(kind.model_fields)


def _path(where: Sequence[int | str]) -> str:
    """A path as in `messages[0].role`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part[:80]}" for part in where)
    return "".join(parts).removeprefix(".")


def _shown(value: Any) -> str:
    """A wrong value: what it is, and a number itself."""
    return _KINDS.get(type(value)) or f"{value}"[:40]
