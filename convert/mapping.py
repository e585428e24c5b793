"""Which tensor of a checkpoint becomes which array of a model, from a table of names; this module knows no model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from convert.errors import CheckpointError, listed
from convert.tensor_info import TensorInfo, float_dtype

FIELD = re.compile(r"\{([a-z_]+)\}")
# How a number is written: with leading zeros, two tensors could stand for the same layer.
NUMBER = "0|[1-9][0-9]*"


@dataclass(frozen=True)
class Rule:
    """The tensor called `pattern` in the checkpoint is the array at `path` of the model.

    `{layer}` and other lowercase words in braces stand for a number, and must be the same words on both sides:
    `Rule("model.layers.{layer}.input_layernorm.weight", "layers.{layer}.attention_norm")`.
    """

    pattern: str
    path: str

    def __post_init__(self) -> None:
        if set(FIELD.findall(self.pattern)) != set(FIELD.findall(self.path)):
            raise ValueError(f"{self.pattern!r} and {self.path!r} must have the same fields in braces")


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
    rules: Sequence[Rule],
    ignores: Sequence[Ignore],
    tensors: Mapping[str, TensorInfo],
    expected: Mapping[str, tuple[int, ...]],
) -> TensorPlan:
    """Assigns a tensor to every `expected` path (path -> shape), and an expected path or a reason to every tensor.

    Raises:
        CheckpointError: when tensors are missing, left over, two for one path, of another shape, or no floats.
        ValueError: when the table is at fault: no rule fills an expected path, or two rules disagree about a tensor.
    """
    sources: dict[str, str] = {}
    ignored: dict[str, str] = {}
    unexpected: list[str] = []
    for name, info in tensors.items():
        path = _path_of(name, rules, expected)
        if path is not None:
            if path in sources:
                raise CheckpointError(
                    f"{info.file}: tensors {sources[path]!r} and {name!r} are both {path!r}; remove one of them"
                )
            sources[path] = name
        elif (reason := _reason_to_ignore(name, ignores)) is not None:
            ignored[name] = reason
        else:
            unexpected.append(name)
    missing = [_source_of(path, rules) for path in expected if path not in sources]
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


def _path_of(name: str, rules: Sequence[Rule], expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """The expected path that the rules give to the tensor `name`, or None."""
    candidates = (translate(name, rule.pattern, rule.path) for rule in rules)
    paths = {path for path in candidates if path is not None and path in expected}
    if len(paths) > 1:
        raise ValueError(f"tensor {name!r} is given to {listed(sorted(paths))}: two rules match it")
    return paths.pop() if paths else None


def _reason_to_ignore(name: str, ignores: Sequence[Ignore]) -> str | None:
    return next((ignore.reason for ignore in ignores if _compiled(ignore.pattern).fullmatch(name)), None)


def _source_of(path: str, rules: Sequence[Rule]) -> str:
    """The tensor that the first rule for `path` expects in the checkpoint."""
    for rule in rules:
        if (name := translate(path, rule.path, rule.pattern)) is not None:
            return name
    raise ValueError(f"no rule has the path {path!r}")


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
            "download both again"
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
