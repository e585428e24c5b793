"""The lines of an input: `{"prompt": ...}` with sampling parameters, or those of OpenAI's batch API. Imports no JAX."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["plain", "openai", "broken"]

_OPENAI = ("method", "url", "body")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line. custom_id: its own, else `line-N`.  value: the object in it.  problem: why it cannot be answered.

    digest: of its bytes; another one means that the line was edited.
    """

    number: int
    kind: Kind
    custom_id: str
    value: Mapping[str, Any]
    digest: str
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a file holds. numbers, digests: of its lines, by custom_id.  openai: the first line of OpenAI's form."""

    numbers: Mapping[str, int]
    digests: Mapping[str, str]
    openai: int | None


def survey(path: Path) -> Survey:
    """Looks through a file once, before anything is loaded.

    Raises:
        ValueError: for a file without lines, with two that have the same custom_id, or a pipe, which is read once only.
        OSError: for one that cannot be read.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is no regular file, and the input is read twice: write it to a file first")
    numbers: dict[str, int] = {}
    digests: dict[str, str] = {}
    openai = None
    for line in read_lines(path):
        if line.custom_id in numbers:
            raise ValueError(
                f"{path}: lines {numbers[line.custom_id]} and {line.number} have the same custom_id, "
                f"{line.custom_id!r:.80}; each needs one of its own"
            )
        numbers[line.custom_id], digests[line.custom_id] = line.number, line.digest
        if line.kind == "openai" and openai is None:
            openai = line.number
    if not numbers:
        raise ValueError(f'{path} has no lines; a line is {{"prompt": "TEXT"}}, or one of OpenAI\'s batch API')
    return Survey(numbers=numbers, digests=digests, openai=openai)


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file that are not empty, in their order. Whatever is in one, it is a line."""
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if raw.strip():
                yield parse_line(raw, number)


def parse_line(raw: bytes, number: int) -> Line:
    """One line of a file."""
    digest = short_digest(raw.strip())
    try:
        value = json.loads(raw.decode("utf-8-sig"), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        return _broken(number, digest, {}, f"it is no JSON in UTF-8 ({error})")
    if not isinstance(value, dict):
        return _broken(number, digest, {}, f"it is a JSON {type(value).__name__}, expected an object")
    custom_id = value.get("custom_id")
    if custom_id is not None and not (isinstance(custom_id, str) and custom_id):
        return _broken(number, digest, {}, f"custom_id must be a text, got {custom_id!r:.40}")
    if any(name in value for name in _OPENAI):
        if missing := [name for name in ("custom_id", *_OPENAI) if value.get(name) is None]:
            return _broken(
                number, digest, value, f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
            )
        return Line(number=number, kind="openai", custom_id=str(custom_id), value=value, digest=digest)
    if "prompt" not in value:
        return _broken(number, digest, value, "it has no prompt, and none of OpenAI's method, url and body")
    return Line(number=number, kind="plain", custom_id=custom_id or f"line-{number}", value=value, digest=digest)


def short_digest(raw: bytes) -> str:
    """Tells edits apart, which nobody forges."""
    return hashlib.sha256(raw).hexdigest()[:16]


def _finite(word: str) -> float:
    """A number of JSON, which has neither NaN nor infinity: no answer could repeat them."""
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word[:40]} is no finite number")
    return value


def _broken(number: int, digest: str, value: Mapping[str, Any], problem: str) -> Line:
    name, problem = value.get("custom_id") or f"line-{number}", f"line {number}: {problem}"
    return Line(number=number, kind="broken", custom_id=name, value=value, digest=digest, problem=problem)
