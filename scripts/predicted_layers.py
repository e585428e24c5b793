"""What `moejax mesh compare` predicts of the layers that were measured, and what following it costs.

Under the dispatch `replicated` everything else of a step, collectives included, is the same for every split of a model
whose heads divide: the layer alone ranks them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import Literal

import numpy as np

from moejax.planning.calls import ProgramCall
from moejax.planning.costs import Setting, expert_layer
from moejax.planning.hardware import Hardware
from moejax.planning.kernels import MATRICES
from moejax.planning.routing import RoutingModel
from moejax.planning.software import parse_skew
from scripts.layer_exchanges import hardware_file, split_rules
from scripts.measured_layers import LOADS, MODELS, TIE, Case, Cell, LayerSplit
from sharding.collectives.collective import ITEM_SIZES

# Who says which split: the fitted terms of the engine that was measured, other software, or one split always.
Adviser = Literal["engine", "moejax", "ideal", "intra", "inter"]
APART = 0.10  # pairs nearer than this are not held against a prediction


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one adviser did over cells.

    cells: how many.  right: the share in which the split that it names is the fastest, or within `TIE` of it.
    losses: by how much longer what it names takes than the fastest, as fractions, where it is not right.
    rare: the loss that 99% of all cells stay below.  worst: the cell of the largest.
    ranked: of pairs of a tensor and an expert split that differ by more than `APART`, the share in the right order.
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


def judge(cells: Iterable[Cell], adviser: Adviser) -> Verdict:
    """Holds an adviser against silicon."""
    found = [(cell, predicted(cell, adviser)) for cell in cells]
    every = [cell.loss(min(said, key=said.__getitem__)) for cell, said in found]
    losses = [loss for loss in every if loss > TIE]
    apart = [(cell, said) for cell, said in found if abs(np.log(cell.inter_over_intra)) > np.log(1 + APART)]
    return Verdict(
        cells=len(found),
        right=1 - len(losses) / len(found),
        losses=losses,
        rare=float(np.quantile(every, 0.99)),
        worst=found[int(np.argmax(every))][0],
        ranked=float(np.mean([_in_order(cell, said) for cell, said in apart])) if apart else 1.0,
    )


def predicted(cell: Cell, adviser: Adviser) -> dict[LayerSplit, float]:
    """Seconds of each split by one adviser, tensor parallelism first, as `mesh compare` lists equal ones."""
    order = sorted(cell.seconds, reverse=True)
    if adviser in ("intra", "inter"):
        return {split: float(split.kind != adviser) for split in order}
    software = cell.case.engine if adviser == "engine" else adviser
    return {split: layer_seconds(cell.case, split, cell.tokens, software) for split in order}


@lru_cache(maxsize=100_000)
def layer_seconds(case: Case, split: LayerSplit, tokens: int, software: str) -> float:
    """One MoE layer without its collectives, as `mesh compare --software` has it."""
    hardware, config = hardware_file(case.hardware), MODELS[case.model]
    routing = RoutingModel(config.num_experts, config.experts_per_token, load=parse_skew(LOADS[case.load]))
    kernels = hardware.kernels(software, case.dtype)
    if kernels is None:
        return _roofline(hardware, routing, split, tokens, case)
    setting = Setting(
        config=config,
        rules=split_rules(case.model, split, "replicated"),
        dispatch="replicated",
        hardware=hardware,
        routing=routing,
        software=software,
    )
    call = ProgramCall(
        sequences=1, width=tokens, requests=1, tokens=tokens, positions=tokens, visited=tokens, chooses=True
    )
    return float(expert_layer(setting, call, case.dtype, kernels).seconds)


def _roofline(hardware: Hardware, routing: RoutingModel, split: LayerSplit, tokens: int, case: Case) -> float:
    """The longer of reading the experts and multiplying their rows, at the datasheet's speeds."""
    config = MODELS[case.model]
    elements = MATRICES * config.embed_dim * config.expert_dim / split.tensor
    reading = routing.experts_read(split.expert, tokens) * elements * ITEM_SIZES[case.dtype] / hardware.bandwidth
    flops = 2 * routing.busiest_rows(split.expert, tokens) * elements
    return max(reading, flops / hardware.matrix_rate[case.dtype])


def _in_order(cell: Cell, said: dict[LayerSplit, float]) -> bool:
    """Whether the faster pure split is predicted to be; equal predictions are not."""
    slow, fast = cell.case.inter, cell.case.intra
    if cell.inter_over_intra < 1:
        slow, fast = fast, slow
    return said[slow] > said[fast]
