"""JSON Schema of Python's types: dataclasses by their fields and docstrings, containers, literals. Imports no JAX."""

import inspect
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

Schema = dict[str, Any]
_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def schema_of(kind: Any, known: Mapping[type, Schema]) -> Schema:
    """The values of a type as `json.dumps` writes those of `dataclasses.asdict`; `known` has schemas of some types.

    Raises:
        TypeError: for a type that has none.
    """
    if kind in known:
        return known[kind]
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if kind is np.ndarray:
        return array({})
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, types.UnionType):
        return either(*(schema_of(one, known) for one in inner))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return mapping(schema_of(inner[1], known))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if origin is tuple and inner[-1] is not Ellipsis:
            return {"type": "array", "prefixItems": [schema_of(one, known) for one in inner], "items": False}
        return array(schema_of(inner[0], known))
    if is_dataclass(kind):
        return dataclass_schema(kind, known)  # type: ignore[arg-type]  # is_dataclass takes instances, too
    raise TypeError(f"{kind!r} has no JSON schema; add it to scripts/json_types.py")


def dataclass_schema(kind: type, known: Mapping[type, Schema], **changed: Schema) -> Schema:
    """An object with a key for each field; `changed` has other schemas of some, and more keys."""
    hints = get_type_hints(kind)
    names = [one.name for one in fields(kind) if one.name not in changed]  # type: ignore[arg-type]
    found = {name: schema_of(hints[name], known) for name in names}
    found |= changed
    words = inspect.getdoc(kind) or ""
    return {"description": " ".join(words.split("Raises:")[0].split())} | thing(**found)


def thing(**keys: Schema) -> Schema:
    """An object that has all of these keys."""
    return {"type": "object", "properties": keys, "required": list(keys)}


def maybe(schema: Schema, **keys: Schema) -> Schema:
    """The same object, which may have these keys, too."""
    return schema | {"properties": schema["properties"] | keys}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def mapping(values: Schema) -> Schema:
    """An object with any keys, all of whose values are alike."""
    return {"type": "object", "additionalProperties": values}


def either(*schemas: Schema) -> Schema:
    """Any of them; plain types are one list."""
    if all(set(one) == {"type"} for one in schemas):
        named = [[one["type"]] if isinstance(one["type"], str) else one["type"] for one in schemas]
        return {"type": list(dict.fromkeys(sum(named, [])))}
    return {"anyOf": list(schemas)}


def said(schema: Schema, words: str) -> Schema:
    """The same with a description."""
    return schema | {"description": words}


TEXT, NUMBER, WHOLE, FLAG, NULL = ({"type": name} for name in ("string", "number", "integer", "boolean", "null"))
