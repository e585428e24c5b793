"""Parameters onto their devices: read from a checkpoint, or random."""

from collections.abc import Sequence

import jax
import numpy as np

from moejax._convert import TensorPlan
from moejax.checkpoint import Checkpoint
from moejax.model.structure import Structure
from moejax.runtime.huge_pages import HugePages
from moejax.weights.filling import Empty, filled
from moejax.weights.layouts import Piece
from moejax.weights.params import ParamTree
from moejax.weights.random import random_value
from moejax.weights.storage import Stored
from moejax.weights.weight import Weight


def random_params(structure: Structure, seed: int) -> ParamTree:
    """Random weights, made on the devices one array at a time."""
    sharding, empty = structure.parallel.sharding, _host_memory()
    return structure.pack(
        lambda weight, piece, held, declared: random_value(weight, piece, held, declared, sharding, seed, empty)
    )


def read_params(checkpoint: Checkpoint, plan: TensorPlan, structure: Structure) -> ParamTree:
    """Reads every parameter onto its devices, one at a time.

    Each part of a parameter that devices of this process hold is read once, and nothing else is.

    Raises:
        CheckpointError: for a damaged tensor, by name.
    """
    sharding, empty = structure.parallel.sharding, _host_memory()

    def make(weight: Weight, piece: Piece, held: Sequence[int], declared: Stored) -> Stored:
        sources = [plan.sources[tensor.path] for tensor in weight.tensors()]

        def read(entry: int | None, where: tuple[slice, ...], out: np.ndarray) -> None:
            expert = 0 if entry is None or piece.places is None else held[piece.places[entry]]
            if expert < len(sources):
                checkpoint.tensors.read_into(sources[expert], out, where)
            else:
                out[...] = 0  # an empty place

        return filled(declared, piece, sharding, empty, read)

    return structure.pack(make)


def _host_memory() -> Empty:
    """What makes host memory for numbers on their way to devices; those of a CPU keep it, so it is in huge pages."""
    return HugePages().empty if jax.default_backend() == "cpu" else np.empty
