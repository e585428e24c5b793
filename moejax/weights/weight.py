"""A weight of a model, declared once: shape, axes, initialiser, names, and place in a converted folder. No JAX.

Modules, loading, random weights, conversion, `info`, planning and benchmarks derive what they need from these
declarations, which a family lists (`families/`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from moejax._sharding import LogicalAxes

# What a weight belongs to, by which reads and FLOPs are counted: `experts` are read by the rows routed to them, a
# `router` by every token that is routed, `embed` a row per token, `head` once per sequence, the others by every token.
Part = Literal["embed", "attention", "router", "experts", "mlp", "head"]

EXPERT = "{expert}"  # in names and paths: the number of an expert
# Logical axes along which a mesh may divide a weight, of which tensor parallelism takes one.
_SPLIT = ("vocab", "q_heads", "kv_heads", "mlp", "hidden")


@dataclass(frozen=True)
class Normal:
    """Normally distributed numbers of this standard deviation."""

    deviation: float


@dataclass(frozen=True)
class Ones:
    """Every number is 1."""


@dataclass(frozen=True)
class Zeros:
    """Every number is 0."""


Initialiser = Normal | Ones | Zeros


def fan_in(size: int) -> Normal:
    """Deviation 1 / sqrt(fan-in), so that activations keep their scale."""
    return Normal(size**-0.5)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One weight of a model; of a layer's experts, the same weight of all of them.

    path: of the logical tensor, `layers.0.attention.q`; it has `{expert}` where the weight is one of many experts.
    shape, axes: of one logical tensor, and what each of its axes is.
    init: what random weights are made of.
    names: Hugging Face's names, the one that is written first; they have `{expert}` where the path has it.
    item, key: place in a converted folder: which Orbax checkpoint, and which array of it.
    part: what it belongs to, by which reads and FLOPs are counted.
    experts: how many experts have such a tensor; None for a weight that is one tensor.
    """

    path: str
    shape: tuple[int, ...]
    axes: LogicalAxes
    init: Initialiser
    names: tuple[str, ...]
    item: str
    key: str
    part: Part
    experts: int | None = None

    @property
    def parameter(self) -> str:
        """Path of the parameter that holds it, all experts in one: `layers.0.moe.experts.gate`."""
        return self.path.replace(f".{EXPERT}", "")

    @property
    def is_matrix(self) -> bool:
        """Whether tokens are multiplied with it."""
        return len(self.shape) == 2 and self.part != "embed"

    @property
    def split_axis(self) -> int:
        """The axis that tensor parallelism divides; 0 where it divides none."""
        return next((i for i, axis in enumerate(self.axes) if axis in _SPLIT), 0)

    def tensors(self) -> Iterator["LogicalTensor"]:
        """The tensors that checkpoints hold of it: one, or one per expert."""
        for expert in [None] if self.experts is None else range(self.experts):
            path, item, *names = (_numbered(text, expert) for text in (self.path, self.item, *self.names))
            yield LogicalTensor(path, self, expert, tuple(names), item)


class LogicalTensor(NamedTuple):
    """One tensor of a checkpoint.

    expert: whose of the weight's experts it is.  names: Hugging Face's.  item: its checkpoint in a converted folder.
    """

    path: str
    weight: Weight
    expert: int | None
    names: tuple[str, ...]
    item: str


def _numbered(text: str, expert: int | None) -> str:
    return text if expert is None else text.replace(EXPERT, str(expert))


def under(weights: Mapping[str, Weight], prefix: str) -> dict[str, Weight]:
    """The weights whose parameters are below `prefix`, by the rest of their paths."""
    start = f"{prefix}."
    return {path.removeprefix(start): weight for path, weight in weights.items() if path.startswith(start)}


def logical_tensors(weights: Iterable[Weight]) -> dict[str, LogicalTensor]:
    """Every tensor that a checkpoint must hold, by its path."""
    return {tensor.path: tensor for weight in weights for tensor in weight.tensors()}
