"""Models on meshes of simulated devices, for tests of the parts below `moejax.load`."""

from typing import Any

from moejax.families.config import ModelConfig
from moejax.loading import make_parallel
from moejax.model.params import ParamTree, random_params
from moejax.model.placement import param_sharding
from moejax.moe.parallel import Parallel
from sharding import mesh_config


def on_mesh(config: ModelConfig, mesh: str | None = None, dispatch: str = "replicated") -> Parallel:
    """How a model of this configuration runs on `mesh`; by default on one device."""
    return make_parallel(config, mesh_config(mesh).build(), dispatch)


def made_params(abstract: dict[str, Any], config: ModelConfig, seed: int, parallel: Parallel) -> ParamTree:
    """Random weights on the mesh."""
    return random_params(abstract, config.num_experts, seed, param_sharding(abstract, parallel))
