"""Tensors that checkpoints hold and that follow from the configuration: compared with it, and not read. No JAX."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moejax._convert import Ignore
from moejax.families.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A tensor called `pattern` follows from the configuration.

    numbers: (configuration, its shape) -> what it then holds, or None: nothing that has this shape.
    """

    pattern: str
    source: str
    numbers: Callable[[ModelConfig, tuple[int, ...]], np.ndarray | None]

    @property
    def ignore(self) -> Ignore:
        """Why it is not read."""
        return Ignore(self.pattern, f"derived from {self.source}")


def inverse_frequencies(config: ModelConfig, shape: tuple[int, ...]) -> np.ndarray | None:
    """[H / 2], by which positions turn (Su et al., arXiv:2104.09864, section 3.2.2)."""
    if shape != (config.head_dim // 2,):
        return None
    return _frequencies(config)


def cosines(config: ModelConfig, shape: tuple[int, ...]) -> np.ndarray | None:
    """[..., positions, H]: of both halves of a head."""
    angles = _angles(config, shape)
    return None if angles is None else np.cos(angles).reshape(shape)


def sines(config: ModelConfig, shape: tuple[int, ...]) -> np.ndarray | None:
    """[..., positions, H]: of both halves of a head."""
    angles = _angles(config, shape)
    return None if angles is None else np.sin(angles).reshape(shape)


def rotary_tables(*prefixes: str) -> tuple[Derived, ...]:
    """What transformers and others have kept of rotary embeddings beside the weights, below these names."""
    kinds = (
        *(("inv_freq", inverse_frequencies), ("original_inv_freq", inverse_frequencies)),
        *(("cos_cached", cosines), ("sin_cached", sines)),
    )
    return tuple(
        Derived(pattern=f"{prefix}rotary_emb.{name}", source="rope_theta", numbers=numbers)
        for prefix in prefixes
        for name, numbers in kinds
    )


def _frequencies(config: ModelConfig) -> np.ndarray:
    return config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)


def _angles(config: ModelConfig, shape: tuple[int, ...]) -> np.ndarray | None:
    if len(shape) < 2 or shape[-1] != config.head_dim or any(size != 1 for size in shape[:-2]):
        return None
    half = np.outer(np.arange(shape[-2]), _frequencies(config))
    return np.concatenate([half, half], axis=-1)
