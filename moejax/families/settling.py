"""Where weights and config.json disagree, and what is done then. Imports no JAX."""

import dataclasses
from typing import TYPE_CHECKING

from moejax._convert import CheckpointError, TensorSource
from moejax._convert.comparing import holds, same_numbers
from moejax._convert.mapping import translate
from moejax.families.config import ModelConfig
from moejax.families.table import family_of, weights_of
from moejax.weights.weight import Weight

if TYPE_CHECKING:
    from moejax._convert import OrbaxFolder, SafetensorsFolder

    Tensors = SafetensorsFolder | OrbaxFolder


_FAR_FEWER = 10_000  # than expected: no file is missing, the configuration is another model's


def check_count(tensors: "Tensors", config: ModelConfig) -> None:
    """Raises CheckpointError when a folder holds far fewer tensors than its configuration has, before any is named."""
    needed = sum(weight.experts or 1 for weight in weights_of(config))
    if needed - len(tensors.tensors) >= _FAR_FEWER:
        raise CheckpointError(
            f"{tensors.folder} holds {len(tensors.tensors)} tensors, but a model of {config.num_layers} layers with "
            f"{config.num_experts} experts has {needed}: its configuration is of another model"
        )


def settle_head(tensors: "Tensors", config: ModelConfig) -> tuple[ModelConfig, "Tensors", tuple[str, ...]]:
    """The configuration and tensors where config.json ties the head to the embedding, and what there is to remark.

    A folder may hold a head all the same. An equal one is what it is tied to; another one is the model's, which is what
    transformers computes with too. Where only the head is there, it is the embedding as well.

    Raises:
        CheckpointError: when one of them cannot be read.
    """
    if not config.tie_embeddings:
        return config, tensors, ()
    untied = dataclasses.replace(config, tie_embeddings=False)
    tied = weights_of(config)
    (embedding,) = (weight for weight in tied if weight.part == "embed")
    (head,) = (weight for weight in weights_of(untied) if weight not in tied)
    table, own = _name_of(embedding, tensors), _name_of(head, tensors)
    if own is None or (table is not None and same_numbers(tensors, table, own)):
        return config, tensors, ()
    if table is not None:
        remark = (
            f"{tensors.folder}: config.json says tie_word_embeddings, but {own!r} is another tensor than {table!r}; "
            "it is used as the head"
        )
        return untied, tensors, (remark,)
    (name, *_) = embedding.names
    renamed = {known: info for known, info in tensors.tensors.items() if known != own}
    renamed[name] = dataclasses.replace(tensors.tensors[own], name=name)
    return config, dataclasses.replace(tensors, tensors=renamed), ()


def not_derived(tensors: "Tensors", config: ModelConfig) -> dict[str, str]:
    """Tensors that ought to follow from the configuration and do not: name -> what is the matter.

    Raises:
        CheckpointError: when one of them cannot be read.
    """
    return {
        name: f"not what {derived.source} gives; transformers does not use it either"
        for derived in family_of(config).derived
        for name, info in tensors.tensors.items()
        if translate(name, derived.pattern, name) is not None
        and not holds(tensors, name, derived.numbers(config, info.shape))
    }


def _name_of(weight: Weight, tensors: TensorSource) -> str | None:
    """What a weight is called in a folder: its path in a converted one, else one of its names."""
    return next((name for name in (weight.path, *weight.names) if name in tensors.tensors), None)
