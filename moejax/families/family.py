"""What a family of checkpoints is: how its config.json is read, and which weights it has. Imports no JAX."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moejax._convert import Fused, Ignore
from moejax.families.config import ModelConfig
from moejax.families.derived import Derived
from moejax.weights.weight import Weight


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of checkpoint, by its model_type a row in `FAMILIES`.

    config: the configuration in the object of a config.json. Raises ValueError, by name, for any feature that would
        change the numbers and is not implemented.
    hf_config: (configuration, dtype) -> the object of a config.json that says the same.
    weights: every weight of a model, once.
    named: configurations that have a name.
    fused: tensors that some versions of transformers write in place of several weights.
    ignored: tensors that checkpoints hold and nobody reads, with the reason.
    derived: tensors that follow from the configuration.
    """

    config: Callable[[dict[str, Any]], ModelConfig]
    hf_config: Callable[[ModelConfig, str], dict[str, Any]]
    weights: Callable[[ModelConfig], Iterable[Weight]]
    named: Mapping[str, ModelConfig]
    fused: tuple[Fused, ...] = ()
    ignored: tuple[Ignore, ...] = ()
    derived: tuple[Derived, ...] = ()
