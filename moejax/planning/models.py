"""The models that a comparison can be asked about, and the expert loads that belong to them. Imports no JAX."""

from pathlib import Path

from moejax.checkpoint import open_checkpoint
from moejax.families.config import ModelConfig
from moejax.families.table import RANDOM, did_you_mean, named_config, named_configs
from moejax.planning.expert_load import RECORD, ExpertLoad, read_expert_load


def model_config(model: str | Path) -> ModelConfig:
    """The sizes of a named configuration, of a config.json, or of a checkpoint ("demo", or a folder).

    Raises:
        ValueError: for anything else, listing what there is.
    """
    name = str(model).removeprefix(RANDOM)
    if name in named_configs() or name.endswith(".json"):
        return named_config(name)
    if name == "demo" or Path(name).exists():  # of a file, it says what that is
        return open_checkpoint(name).config
    raise ValueError(
        f"unknown model {name!r}: the known ones are {', '.join(named_configs())} and demo, or give the path of a "
        f"config.json or of a checkpoint's folder{did_you_mean(name, [*named_configs(), 'demo'])}"
    )


def stored_dtype(model: str | Path) -> str:
    """What the word "auto" means for the dtype of this model: a checkpoint's own, else bfloat16.

    Raises:
        ValueError: as `model_config`.
    """
    name = str(model).removeprefix(RANDOM)
    if name in named_configs() or name.endswith(".json"):
        return "bfloat16"
    return open_checkpoint(name).dtype


def expert_shares(given: ExpertLoad | str | Path, config: ModelConfig) -> tuple[tuple[float, ...], ...]:
    """Per layer, how likely a token chooses each expert, as often as was recorded.

    Raises:
        ValueError: for a file that cannot be used, or the load of another model.
    """
    if not isinstance(given, ExpertLoad | str | Path):
        raise ValueError(f"expert_load must be a recorded load or the path of one, got {given!r:.80}")
    load = given if isinstance(given, ExpertLoad) else read_expert_load(given)
    recorded = (load.num_layers, load.num_experts, load.experts_per_token)
    wanted = (config.num_layers, config.num_experts, config.experts_per_token)
    if recorded != wanted:
        words = "{} layers, {} experts, {} per token"
        raise ValueError(
            f"the expert load was recorded from {load.model} ({words.format(*recorded)}), but this model has "
            f"{words.format(*wanted)}; record one with: {RECORD}"
        )
    return tuple(
        tuple(config.experts_per_token * count / sum(layer) for count in layer) if sum(layer) else _even(config)
        for layer in load.counts
    )


def _even(config: ModelConfig) -> tuple[float, ...]:
    return (config.experts_per_token / config.num_experts,) * config.num_experts
