"""The models that a comparison can be asked about, and the expert loads that belong to them. Imports no JAX."""

from pathlib import Path

from moejax._convert import FLOAT_DTYPES
from moejax.checkpoint import open_checkpoint
from moejax.families.config import ModelConfig
from moejax.families.hf_config import read_config_json
from moejax.families.mistral_release import PARAMS
from moejax.families.table import RANDOM, did_you_mean, from_hf, from_params, named_config, named_configs
from moejax.hub.failures import HubError
from moejax.hub.names import HubModel, hub_model
from moejax.planning.expert_load import RECORD, ExpertLoad, read_expert_load


def model_config(model: str | Path) -> ModelConfig:
    """The sizes of a named configuration, of a config.json, of a checkpoint ("demo", or a folder), or of a model on
    Hugging Face, of which nothing but its config.json is downloaded.

    Raises:
        ValueError: for anything else, listing what there is.
    """
    name = str(model).removeprefix(RANDOM)
    if name in named_configs() or name.endswith(".json"):
        return named_config(name)
    if name == "demo" or Path(name).exists():  # of a file, it says what that is
        return open_checkpoint(name).config
    if (wanted := hub_model(name)) is not None:
        return _on_hub(wanted, name)[0]
    near = did_you_mean(name, [*named_configs(), "demo"])
    raise ValueError(
        f"unknown model {name!r}: the known ones are {', '.join(named_configs())} and demo, or give the path of a "
        f"config.json or of a checkpoint's folder, or an id on Hugging Face (ORG/NAME){near}"
    )


def stored_dtype(model: str | Path) -> str:
    """What the word "auto" means for the dtype of this model: a checkpoint's own, else bfloat16.

    Raises:
        ValueError: as `model_config`.
    """
    name = str(model).removeprefix(RANDOM)
    if name in named_configs() or name.endswith(".json"):
        return "bfloat16"
    if (wanted := hub_model(name)) is not None:
        return _on_hub(wanted, name)[1]
    return open_checkpoint(name).dtype


def _on_hub(wanted: HubModel, name: str) -> tuple[ModelConfig, str]:
    """The sizes that the configuration of a model on Hugging Face says, and the dtype of its weights."""
    from moejax.hub.download import config_file  # here, because named configurations need none of it

    try:
        path = config_file(wanted)
    except HubError as error:
        raise HubError(f"{error}{did_you_mean(name, named_configs())}") from error
    raw = read_config_json(path)
    config = from_params(raw, path) if path.name == PARAMS else from_hf(raw, path)
    said = raw.get("dtype", raw.get("torch_dtype"))
    return config, said if said in FLOAT_DTYPES else "bfloat16"


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
