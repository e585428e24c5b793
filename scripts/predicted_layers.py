"""MoE layers predicted by the terms of the hardware files, beside the same layers as they were measured.

What `scripts.silicon_layers` took from the tables; needs nothing but moejax.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from moejax.planning.hardware_file import load_hardware
from moejax.planning.kernels import Load, Shape
from moejax.planning.loads import Balanced, PowerLaw
from moejax.planning.routing import RoutingModel
from sharding.collectives.collective import ITEM_SIZES

DATA = Path(__file__).resolve().parents[1] / "docs" / "predictions"
LAYERS = DATA / "layers.json"
LOADS = {"balanced": Balanced(), "power_law_1.01": PowerLaw(1.01), "power_law_1.2": PowerLaw(1.2)}
APART = 1.1  # two splits differ when one takes so many times the other's time


class Model(NamedTuple):
    """Of a model, what a layer's experts are.  chosen: experts per token."""

    name: str
    inputs: int
    width: int
    chosen: int
    experts: int


MIXTRAL = Model("Mixtral 8x7B", 4096, 14336, 2, 8)
QWEN = Model("Qwen3-30B-A3B", 2048, 768, 8, 128)  # whose layers the terms were not fitted to
MODELS = (MIXTRAL, QWEN)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One measured layer.  kernel: what ran it.  seconds: measured.  predicted, streamed: by the fitted terms, as a
    benchmark runs it that has one layer, and as a model does that reads every layer's weights from memory.
    untuned: whether its authors tuned the kernel for other shapes only.  of_cache: weights read over the last cache.
    """

    hardware: str
    software: str
    dtype: str
    model: str
    kernel: str
    load: str
    tensor: int
    expert: int
    tokens: int
    seconds: float
    predicted: float
    streamed: float
    untuned: bool
    of_cache: float

    @property
    def error(self) -> float:
        return self.predicted / self.seconds - 1


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same layer over as many devices, split inside its experts and between them."""

    tensor: Layer
    expert: Layer

    @property
    def differs(self) -> bool:
        """Whether it matters on silicon which of them is taken."""
        return max(self.tensor.seconds, self.expert.seconds) > APART * min(self.tensor.seconds, self.expert.seconds)

    def right(self, times: str = "predicted") -> bool:
        """Whether the one predicted to be faster is."""
        first, second = getattr(self.tensor, times), getattr(self.expert, times)
        return (first < second) == (self.tensor.seconds < self.expert.seconds) and first != second

    @property
    def cost(self) -> float:
        """What taking the slower one costs, as a share of the faster one's time."""
        return max(self.tensor.seconds, self.expert.seconds) / min(self.tensor.seconds, self.expert.seconds) - 1


@lru_cache(maxsize=1)
def predicted_layers() -> list[Layer]:
    """Every layer of the file."""
    measured = read("layers")
    models = {model.name: model for model in MODELS}
    return [
        layer
        for hardware, engines in measured["layers"].items()
        for software, dtypes in engines.items()
        for dtype, by_model in dtypes.items()
        for name, found in by_model.items()
        for layer in _layers((hardware, software, dtype), models[name], found, measured["tokens"])
    ]


def _layers(where: tuple[str, str, str], model: Model, found: Mapping[str, Any], tokens: list[int]) -> Iterator[Layer]:
    hardware, software, dtype = where
    kind = load_hardware(hardware)
    kernels, device = kind.kernels(software, dtype), kind.device(dtype)
    if kernels is None:
        raise ValueError(f"{hardware} has no terms of {software} in {dtype}; fit them: python -m scripts.fit_hardware")
    for load, splits in found["microseconds"].items():
        for split, microseconds in splits.items():
            tensor, expert = (int(part.partition("=")[2]) for part in split.split(","))
            shape = Shape(experts=model.experts // expert, inputs=model.inputs, width=model.width // tensor)
            terms = kernels.experts_for(shape)
            at = [one for one, measured in zip(tokens, microseconds, strict=True) if measured is not None]
            work = _load(load, model, expert, tuple(at), tuple(terms.tiles))
            resident, streamed = (
                terms.spent(device, shape, work, ITEM_SIZES[dtype], resident=resident).seconds
                for resident in (True, False)
            )
            measured = [one * 1e-6 for one in microseconds if one is not None]
            read = work.active * shape.elements * ITEM_SIZES[dtype] / device.cache_bytes
            for count, seconds, one, other, cached in zip(at, measured, resident, streamed, read, strict=True):
                yield Layer(
                    hardware=hardware,
                    software=software,
                    dtype=dtype,
                    model=model.name,
                    kernel=found["kernel"],
                    load=load,
                    tensor=tensor,
                    expert=expert,
                    tokens=count,
                    seconds=seconds,
                    predicted=float(one),
                    streamed=float(other),
                    untuned=terms is kernels.untuned,
                    of_cache=float(cached),
                )


@cache
def _load(load: str, model: Model, parts: int, tokens: tuple[int, ...], tiles: tuple[int, ...]) -> Load:
    """What one device was measured with, at each number of tokens: of balanced loads the first device, of others the
    one that has most rows.
    """
    found = [Load.of(one, model.chosen, _rows(load, model, parts, one), tiles) for one in tokens]
    return Load(
        tokens=np.array(tokens, dtype=float),
        elsewhere=np.array([one.elsewhere for one in found]),
        active=np.array([one.active for one in found]),
        rows=np.array([one.rows for one in found]),
        filled={tile: np.array([one.filled[tile] for one in found]) for tile in tiles},
    )


@cache
def _rows(load: str, model: Model, parts: int, tokens: int) -> np.ndarray:
    if load == "balanced":
        return LOADS[load].rows(tokens, model.chosen, model.experts)[:, : model.experts // parts]
    return RoutingModel(model.experts, model.chosen, load=LOADS[load]).busiest(parts, tokens)


@cache
def read(name: str) -> Any:
    """One of the committed files."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def pairs(layers: Iterable[Layer]) -> list[Pair]:
    """Every two layers that are the same but for how they are split, over 2, 4 and 8 devices."""
    inside, between = {}, {}
    for layer in layers:
        if layer.tensor * layer.expert == max(layer.tensor, layer.expert) > 1:
            key = (layer.hardware, layer.software, layer.dtype, layer.model, layer.load, layer.tokens)
            side, count = (inside, layer.tensor) if layer.expert == 1 else (between, layer.expert)
            side[(*key, count)] = layer
    return [Pair(tensor=one, expert=between[key]) for key, one in inside.items() if key in between]


def off(layers: Iterable[Layer]) -> tuple[int, float, float]:
    """How many layers, their median error, and the share of them that is within 25%."""
    errors = [abs(layer.error) for layer in layers]
    return len(errors), median(errors), sum(error <= 0.25 for error in errors) / len(errors)
