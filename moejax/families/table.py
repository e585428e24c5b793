"""The families that moejax decodes, by the model_type of their config.json. Imports no JAX.

Adding one: a file beside `mixtral.py` and a row here.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from moejax._convert import CheckpointError
from moejax.families.config import ModelConfig
from moejax.families.family import Family
from moejax.families.hf_config import read_config_json
from moejax.families.mistral_release import params_config
from moejax.families.mixtral import MIXTRAL
from moejax.weights.counts import Counts, count_parameters
from moejax.weights.weight import LogicalTensor, Weight, logical_tensors

RANDOM = "random:"  # what the name of a model of random weights begins with; a named configuration follows

FAMILIES: dict[str, Family] = {
    "mixtral": MIXTRAL,
}


def named_configs() -> dict[str, ModelConfig]:
    """Every configuration that has a name, of all families."""
    return {name: config for family in FAMILIES.values() for name, config in family.named.items()}


def family_of(config: ModelConfig) -> Family:
    """The family of a model."""
    return FAMILIES[config.family]


@lru_cache(maxsize=256)
def weights_of(config: ModelConfig) -> tuple[Weight, ...]:
    """Every weight of a model."""
    return tuple(family_of(config).weights(config))


@lru_cache(maxsize=256)
def parameters_of(config: ModelConfig) -> Counts:
    """How many parameters a model has."""
    return count_parameters(weights_of(config), config.experts_per_token)


@lru_cache(maxsize=16)
def tensor_names(config: ModelConfig) -> Mapping[str, LogicalTensor]:
    """The tensor of every name that a user may call it by: our path, and Hugging Face's names.

    A head that is tied to the embedding is another name of the embedding.
    """
    tensors = logical_tensors(weights_of(config))
    known = {name: tensor for tensor in tensors.values() for name in (tensor.path, *tensor.names)}
    if config.tie_embeddings:
        untied = logical_tensors(weights_of(dataclasses.replace(config, tie_embeddings=False)))
        (table,) = (tensor for tensor in tensors.values() if tensor.weight.part == "embed")
        heads = [tensor for path, tensor in untied.items() if path not in tensors]
        known |= {name: table for head in heads for name in (head.path, *head.names)}
    return known


def find_tensor(name: str, config: ModelConfig) -> LogicalTensor:
    """The tensor called `name`, by our path or by one of Hugging Face's names.

    Raises:
        ValueError: for a name that no tensor of this model has, with the nearest one.
    """
    known = tensor_names(config)
    if name in known:
        return known[name]
    near = get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; model.names() lists them"
    raise ValueError(f"no weight of this model is called {name!r}{hint}")


def from_hf(raw: Mapping[str, Any], path: Path | str = "config.json") -> ModelConfig:
    """Reads a Hugging Face config.json, v4 (`rope_theta`, `torch_dtype`) or v5 (`rope_parameters`, `dtype`).

    `path` is the file that messages name.

    Raises:
        ValueError: for an unknown family, a missing or impossible size, and, by name, any feature that would change
            the numbers and is not implemented.
    """
    kind = raw.get("model_type")
    try:
        if kind not in FAMILIES:
            raise ValueError(f"model_type is {kind!r}; moejax decodes {', '.join(map(repr, FAMILIES))} models only")
        return FAMILIES[kind].config(dict(raw))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error  # which is short, whatever the file holds


def from_params(raw: Mapping[str, Any], path: Path | str) -> ModelConfig:
    """Reads a params.json of Mistral's own layout, with the errors of `from_hf`."""
    try:
        return params_config(raw)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def named_config(name: str) -> ModelConfig:
    """The configuration called `name`, or the one in the config.json that `name` is the path of.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    known = named_configs()
    if name in known:
        return known[name]
    if name.endswith(".json"):
        return from_hf(read_config_json(Path(name)), name)
    raise ValueError(
        f"unknown model {name!r}: the known names are {', '.join(known)}, or the path of a config.json"
        f"{did_you_mean(name, known)}"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown model: `; did you mean 'mixtral-8x7b'?`, or nothing.

    Of an id as Hugging Face has it (mistralai/Mixtral-8x7B-Instruct-v0.1) the owner does not count, nor what follows.
    """
    last, known = name.rstrip("/").rpartition("/")[2].lower(), list(known)
    near = [one for one in known if last.startswith(one)] or get_close_matches(last, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
