"""What `moejax mesh compare` predicts of the layers that were measured, and what following it costs.

Under the dispatch `replicated` everything else of a step, collectives included, is the same for every split of a model
whose heads divide: the layer alone ranks them. Needs nothing but moejax.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from statistics import median
from typing import Literal

import numpy as np

from moejax._sharding.collectives.collective import ITEM_SIZES
from moejax.planning.hardware import Hardware
from moejax.planning.kernels import MATRICES, DeviceLoad, ExpertTerms, Shape
from moejax.planning.routing import RoutingModel
from moejax.planning.skew import skewed_routing
from scripts.layer_exchanges import hardware_file
from scripts.measured_layers import LOADS, MODELS, TIE, Cell, LayerCase, LayerSplit, read_layers

# Who says which split: the fitted terms of the engine that was measured, other software, or one split always.
Adviser = Literal["engine", "moejax", "ideal", "intra", "inter"]
WITHIN = 0.25  # of a layer


@dataclass(frozen=True, kw_only=True)
class PredictedLayer:
    """A measured layer and what the terms of its engine say of it, in seconds, as the benchmark ran it: over and over.

    untuned: whether the engine's other terms are for it.  of_cache: weights read over the last cache.
    """

    case: LayerCase
    split: LayerSplit
    tokens: int
    seconds: float
    predicted: float
    untuned: bool
    of_cache: float

    @property
    def error(self) -> float:
        return self.predicted / self.seconds - 1


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How one adviser did over cells.

    cells: how many.  right: the share in which the split that it names is the fastest, or within `TIE` of it.
    losses: by how much longer what it names takes than the fastest, as fractions, where it is not right.
    rare: the loss that 99% of all cells stay below.  worst: the cell of the largest.
    ranked: of pairs of a tensor and an expert split that are apart, the share in the right order.
    """

    cells: int
    right: float
    losses: list[float]
    rare: float
    worst: Cell
    ranked: float

    @property
    def median_loss(self) -> float:
        return median(self.losses) if self.losses else 0.0


def judge(cells: Iterable[Cell], adviser: Adviser) -> Judgement:
    """Holds an adviser against silicon."""
    found = [(cell, predicted(cell, adviser)) for cell in cells]
    every = [cell.loss(min(said, key=said.__getitem__)) for cell, said in found]
    losses = [loss for loss in every if loss > TIE]
    apart = [(cell, said) for cell, said in found if cell.apart]
    return Judgement(
        cells=len(found),
        right=1 - len(losses) / len(found),
        losses=losses,
        rare=float(np.quantile(every, 0.99)),
        worst=found[int(np.argmax(every))][0],
        ranked=float(np.mean([in_order(cell, said) for cell, said in apart])) if apart else 1.0,
    )


def predicted(cell: Cell, adviser: Adviser, *, resident: bool = False) -> dict[LayerSplit, float]:
    """Seconds of each split by one adviser, tensor parallelism first, as `mesh compare` lists equal ones."""
    order = sorted(cell.seconds, reverse=True)
    if adviser in ("intra", "inter"):
        return {split: float(split.kind != adviser) for split in order}
    software = cell.case.engine if adviser == "engine" else adviser
    return {split: layer_seconds(cell.case, split, cell.tokens, software, resident=resident) for split in order}


def in_order(cell: Cell, said: dict[LayerSplit, float]) -> bool:
    """Whether the faster pure split is predicted to be; equal predictions are not."""
    slow, fast = cell.case.inter, cell.case.intra
    if cell.inter_over_intra < 1:
        slow, fast = fast, slow
    return said[slow] > said[fast]


@lru_cache(maxsize=1)
def predicted_layers() -> list[PredictedLayer]:
    """Every layer of the extract."""
    found = []
    for case, split, tokens, seconds in read_layers():
        terms, shape = _terms(case.hardware, case.engine, case.dtype, case.model, split)
        read = _load(case.load, case.model, split.expert, tokens, tuple(terms.tiles)).active * shape.elements
        kernels = hardware_file(case.hardware).kernels(case.engine, case.dtype)
        found.append(
            PredictedLayer(
                case=case,
                split=split,
                tokens=tokens,
                seconds=seconds,
                predicted=layer_seconds(case, split, tokens, case.engine, resident=True),
                untuned=kernels is not None and terms is kernels.untuned,
                of_cache=read * ITEM_SIZES[case.dtype] / hardware_file(case.hardware).cache_bytes,
            )
        )
    return found


def off(layers: Iterable[PredictedLayer]) -> tuple[int, float, float]:
    """How many layers, their median error, and the share of them that is within `WITHIN`."""
    errors = [abs(layer.error) for layer in layers]
    return len(errors), median(errors), sum(error <= WITHIN for error in errors) / len(errors)


@lru_cache(maxsize=200_000)
def layer_seconds(case: LayerCase, split: LayerSplit, tokens: int, software: str, *, resident: bool = False) -> float:
    """One MoE layer without its collectives, as `mesh compare --software` has it.

    resident: where its weights fit the device's cache they are there, as a benchmark of one layer has them.
    """
    hardware = hardware_file(case.hardware)
    if hardware.kernels(software, case.dtype) is None:
        return _roofline(hardware, split, tokens, case)
    terms, shape = _terms(case.hardware, software, case.dtype, case.model, split)
    load = _load(case.load, case.model, split.expert, tokens, tuple(terms.tiles))
    spent = terms.spent(hardware.device(case.dtype), shape, load, ITEM_SIZES[case.dtype], resident=resident)
    return float(spent.seconds)


@cache
def _terms(hardware: str, software: str, dtype: str, model: str, split: LayerSplit) -> tuple[ExpertTerms, Shape]:
    config, kernels = MODELS[model], hardware_file(hardware).kernels(software, dtype)
    if kernels is None:
        raise ValueError(
            f"{hardware} has no terms of {software} in {dtype}; fit them: python -m scripts.fit_hardware --write"
        )
    shape = Shape(
        experts=config.num_experts // split.expert, inputs=config.embed_dim, width=config.expert_dim // split.tensor
    )
    return kernels.experts_for(shape), shape


@cache
def _load(load: str, model: str, parts: int, tokens: int, tiles: tuple[int, ...]) -> DeviceLoad:
    return DeviceLoad.of(tokens, MODELS[model].experts_per_token, _routing(load, model).busiest(parts, tokens), tiles)


@cache
def _routing(load: str, model: str) -> RoutingModel:
    return skewed_routing(MODELS[model], LOADS[load])


def _roofline(hardware: Hardware, split: LayerSplit, tokens: int, case: LayerCase) -> float:
    """The longer of reading the experts and multiplying their rows, at the datasheet's speeds."""
    config, routing = MODELS[case.model], _routing(case.load, case.model)
    elements = MATRICES * config.embed_dim * config.expert_dim / split.tensor
    reading = routing.experts_read(split.expert, tokens) * elements * ITEM_SIZES[case.dtype] / hardware.bandwidth
    flops = 2 * routing.busiest_rows(split.expert, tokens) * elements
    return max(reading, flops / hardware.matrix_rate[case.dtype])
