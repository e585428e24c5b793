"""What the devices of a measured MoE layer exchange, by the curves of collectives in the hardware files."""

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from moejax._sharding import MeshConfig, Rules
from moejax.moe.split import DispatchName, make_rules
from moejax.planning.communication import Tokens, moe_collectives
from moejax.planning.hardware_file import load_hardware
from moejax.planning.links import exchange_seconds
from scripts.measured_layers import MODELS, Cell, LayerCase, LayerSplit

hardware_file = lru_cache(load_hardware)


@lru_cache
def split_rules(model: str, split: LayerSplit, dispatch: DispatchName) -> Rules:
    """How a measured model is split so."""
    return make_rules(MODELS[model], MeshConfig(tensor=split.tensor, expert=split.expert), dispatch)


def with_exchanges(cells: Iterable[Cell]) -> list[Cell]:
    """The same cells with the all-reduce that their engine ends the layer with, of one size for every split."""
    return [
        replace(
            cell,
            seconds={
                split: seconds + layer_exchange(cell.case, split, cell.tokens) for split, seconds in found.items()
            },
        )
        for cell in cells
        for found in [cell.seconds]
    ]


@lru_cache(maxsize=100_000)
def layer_exchange(case: LayerCase, split: LayerSplit, tokens: int, dispatch: DispatchName = "replicated") -> float:
    """Seconds of one layer's collectives; where the batch is split, over `split.expert` devices, it is filled up."""
    rules = split_rules(case.model, split, dispatch)
    parts = rules.parts("batch")
    every = moe_collectives(
        MODELS[case.model], rules, dispatch, Tokens(sequences=-(-tokens // parts) * parts, length=1), "bfloat16"
    )
    return sum(exchange_seconds(every, rules.mesh, hardware_file(case.hardware), case.engine))
