"""The plain implementation that the page's race runs against: which one, and what it is asked. Imports no JAX.

It computes the same weights in a process of its own, so that neither its libraries nor its memory are the server's.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from moejax._convert import SafetensorsFolder
from moejax.checkpoint import open_checkpoint
from moejax.decoding.sampling_params import SamplingParams
from moejax.families.table import RANDOM

BASELINES = ("auto", "transformers", "plain", "none")
PACKAGES = ("torch", "transformers")

Kind = Literal["transformers", "plain", "none"]

# What both baselines do as the server does. Whatever else changes tokens is refused.
SHARED = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
# What the server does to the baseline's tokens, or what changes none of them.
HARMLESS = ("stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The baseline of a server.

    kind: which one.  reason: why it is this one, or why there is none.
    source: a folder in Hugging Face format for transformers, else whatever `moejax.load` takes.
    """

    kind: Kind
    reason: str
    source: str

    @property
    def available(self) -> bool:
        return self.kind != "none"

    @property
    def name(self) -> str:
        """What people call it."""
        return {"transformers": "transformers", "plain": "plain moejax", "none": "none"}[self.kind]

    def facts(self) -> dict[str, Any]:
        """What the page is told."""
        return {"name": self.name, "available": self.available, "reason": self.reason}


NO_BASELINE = Choice(kind="none", reason="this server was started without a baseline", source="")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What its process loads: weights in the server's `dtype`, on the server's `platform`, "cpu" or "gpu"."""

    kind: Kind
    source: str
    dtype: str
    platform: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run: continue `prompt` until one of `stop_ids`, or for `max_tokens`. The rest is as in `SamplingParams`."""

    prompt: list[int]
    stop_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None


Emit = Callable[[int], None]  # is given each token as it is chosen; may raise to end the run


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """A loaded baseline, in its own process.

    description: what runs, for people.  generate: does a task, and hands out its tokens as they come.
    excluded_seconds: how much of the time so far went into compiling, which the server's clock does not count either.
    """

    description: str
    generate: Callable[[Task, Emit], None]
    excluded_seconds: Callable[[], float]


def choose(wanted: str, source: str) -> Choice:
    """The baseline that `--baseline` names for a checkpoint; "auto" takes transformers where it can run.

    Raises:
        ValueError: for an unknown name, and for transformers where it cannot run.
    """
    if wanted not in BASELINES:
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, got {wanted!r}")
    obstacle = None if wanted in ("plain", "none") else _obstacle(source)
    if wanted == "transformers" and obstacle is not None:
        raise ValueError(f"baseline=transformers cannot run: {obstacle}; use plain, or auto to take what can run")

    if wanted == "none":
        return NO_BASELINE
    plain = "our own model without a cache and with every expert computed"
    if wanted == "plain":
        return Choice(kind="plain", reason=plain, source=source)
    if obstacle is not None:
        return Choice(kind="plain", reason=f"{plain}, because {obstacle}", source=source)
    return Choice(kind="transformers", reason="its generate() on the same weights", source=source)


def _obstacle(source: str) -> str | None:
    """Why transformers cannot run a checkpoint; None if it can."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed"
    if source.startswith(RANDOM):
        return "random weights are in no folder that transformers could read"
    checkpoint = open_checkpoint(source)
    if not checkpoint.has_config or not isinstance(checkpoint.tensors, SafetensorsFolder):
        layout = "was converted" if checkpoint.has_config else "is in Mistral's own layout"
        return f"{source} {layout}, and transformers reads Hugging Face folders"
    return None


def make_task(prompt: list[int], params: SamplingParams, stop_ids: tuple[int, ...]) -> Task:
    """The task that continues `prompt` as the server would.

    Raises:
        ValueError: when the parameters ask for what the baselines do not do, naming it.
    """
    for field in dataclasses.fields(params):
        value = getattr(params, field.name)
        if field.name not in (*SHARED, *HARMLESS) and value not in (field.default, None):
            raise ValueError(f"the baseline has no {field.name}, got {value!r}: leave it out for a race")
    shared: Mapping[str, Any] = {name: getattr(params, name) for name in SHARED}
    return Task(prompt=prompt, stop_ids=stop_ids, **shared)
