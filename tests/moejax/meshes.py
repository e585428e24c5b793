"""Models and single modules on meshes of simulated devices, for tests of the parts below `moejax.load`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moejax._sharding import mesh_config
from moejax.families.config import ModelConfig
from moejax.families.table import weights_of
from moejax.model.structure import make_parallel
from moejax.moe.layer import MoE
from moejax.moe.parallel import Parallel
from moejax.ops.table import BackendName, make_ops
from moejax.weights.counts import num_places
from moejax.weights.layouts import pack
from moejax.weights.params import ParamTree
from moejax.weights.random import random_value
from moejax.weights.weight import Weight, under


def on_mesh(config: ModelConfig, mesh: str | None = None, dispatch: str = "replicated") -> Parallel:
    """How a model of this configuration runs on `mesh`; by default on one device."""
    return make_parallel(config, mesh_config(mesh).build(), dispatch)


def layer_weights(config: ModelConfig, name: str) -> dict[str, Weight]:
    """The weights of a part of the first layer, as its module is given them."""
    return under({weight.parameter: weight for weight in weights_of(config)}, f"layers.0.{name}")


def moe_module(
    config: ModelConfig, backend: BackendName, parallel: Parallel, *, dtype: Any, places: int | None = None
) -> MoE:
    """The MoE layer of a model; experts in as many places as there are experts, padded to divide."""
    places = places or num_places(config.num_experts, parallel.rules.parts("experts"))
    weights = layer_weights(config, "moe")
    return MoE(config, weights, make_ops(backend), parallel, places=places, dtype=dtype)


def made_params(abstract: Mapping[str, Any], seed: int, parallel: Parallel, backend: BackendName) -> ParamTree:
    """Random weights of a module on the mesh, the experts in order."""
    params, peers, layout = {}, parallel.rules.parts("experts"), make_ops(backend).layout
    for path, variable in abstract.items():
        weight, value = variable.get_metadata("weight"), variable.get_value()
        places = value.shape[0] if weight.experts is not None else 0

        def one(piece: Any, declared: Any, weight: Weight = weight, places: int = places) -> Any:
            held = [min(place, weight.experts or 0) for place in range(places)]
            return random_value(weight, piece, held, declared, parallel.sharding, seed, np.empty)

        params[path] = pack(weight, value, layout, places, peers, one)
    return params
