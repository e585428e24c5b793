"""Which tensor of a checkpoint becomes which array of a model, by its names; this module knows no model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from moejax._convert.errors import CheckpointError, listed
from moejax._convert.tensor_info import TensorInfo, float_dtype

FIELD = re.compile(r"\{([a-z_]+)\}")
# How a number is written: with leading zeros, two tensors could stand for the same layer.
NUMBER = "0|[1-9][0-9]*"


@dataclass(frozen=True)
class Ignore:
    """A tensor called `pattern` is not read, for the `reason` given, where no rule gives it an expected path."""

    pattern: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """Where each array of the model comes from: path -> tensor; and ignored tensors: name -> reason."""

    sources: Mapping[str, str]
    ignored: Mapping[str, str]


def plan(
    names: Mapping[str, Sequence[str]],
    ignores: Sequence[Ignore],
    tensors: Mapping[str, TensorInfo],
    expected: Mapping[str, tuple[int, ...]],
) -> TensorPlan:
    """Assigns a tensor to every `expected` path (path -> shape), and an expected path or a reason to every tensor.

    Args:
        names: what the tensor of each path may be called; the first is the one that is missed.

    Raises:
        CheckpointError: when tensors are missing, left over, two for one path, of another shape, or no floats.
        ValueError: when the names are at fault: two paths have one.
    """
    paths = _paths_of(names)
    sources: dict[str, str] = {}
    ignored: dict[str, str] = {}
    unexpected: list[str] = []
    for name, info in tensors.items():
        path = paths.get(name)
        if path is not None and path in expected:
            if path in sources:
                raise CheckpointError(
                    f"{info.file}: tensors {sources[path]!r} and {name!r} are both {path!r}; remove one of them"
                )
            sources[path] = name
        elif (reason := _reason_to_ignore(name, ignores)) is not None:
            ignored[name] = reason
        else:
            unexpected.append(name)
    missing = [names[path][0] for path in expected if path not in sources]
    _check_complete(tensors, missing, unexpected)
    sources = {path: sources[path] for path in expected}
    _check_shapes({path: tensors[name] for path, name in sources.items()}, expected)
    return TensorPlan(sources=MappingProxyType(sources), ignored=MappingProxyType(ignored))


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Matches the names that `pattern` stands for; a field that appears twice is the same number twice."""
    seen: set[str] = set()
    parts: list[str] = []
    # Splitting by a pattern with a group gives literal text and field names in turn.
    for position, text in enumerate(FIELD.split(pattern)):
        if position % 2 == 0:
            parts.append(re.escape(text))
        else:
            parts.append(f"(?P={text})" if text in seen else f"(?P<{text}>{NUMBER})")
            seen.add(text)
    return re.compile("".join(parts))


def translate(name: str, source: str, target: str) -> str | None:
    """`target` with the numbers that `name` has in the places of `source`'s fields; None when it does not match."""
    match = _compiled(source).fullmatch(name)
    return None if match is None else FIELD.sub(lambda field: match[field[1]], target)


def _paths_of(names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Path by name."""
    paths: dict[str, str] = {}
    for path, known in names.items():
        for name in known:
            if paths.setdefault(name, path) != path:
                raise ValueError(f"tensor {name!r} is given to {listed(sorted((paths[name], path)))}")
    return paths


def _reason_to_ignore(name: str, ignores: Sequence[Ignore]) -> str | None:
    return next((ignore.reason for ignore in ignores if _compiled(ignore.pattern).fullmatch(name)), None)


def _check_complete(tensors: Mapping[str, TensorInfo], missing: Sequence[str], unexpected: Sequence[str]) -> None:
    problems = []
    if missing:
        problems.append(f"lacks {listed(missing)}")
    if unexpected:
        problems.append(f"holds {listed(unexpected)}, which nothing uses")
    if problems:
        where = _folder(tensors)
        raise CheckpointError(
            f"{where} {' and '.join(problems)}; config.json does not describe these weights, or a file is missing: "
            "use what belongs together, of one release"
        )


def _check_shapes(filled: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [path for path, info in filled.items() if info.shape != expected[path]]
    if wrong:
        path, info = wrong[0], filled[wrong[0]]
        others = f", as have {len(wrong) - 1} more" if wrong[1:] else ""
        raise CheckpointError(
            f"{info.file}: tensor {info.name!r} has the wrong shape{others}: got {list(info.shape)}, "
            f"expected {list(expected[path])}; config.json and the weights disagree: use the two that belong together"
        )
    for info in filled.values():
        float_dtype(info)


def _folder(tensors: Mapping[str, TensorInfo]) -> Path | str:
    return next((info.file.parent for info in tensors.values()), "the checkpoint")
