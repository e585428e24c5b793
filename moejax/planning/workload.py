"""What is asked of a model: how many requests at a time, how long. Imports no JAX."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from moejax.families.config import ModelConfig

INPUT_LEN, CONTEXT = 512, 2048  # tokens, where nothing else was asked for


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a comparison predicts: the prefill of `batch_size` prompts, and one decode step of all of them.

    input_len: tokens of each prompt.  context: tokens of each sequence in the cache while the step is timed, for which
    the cache is allocated; 0 leaves the cache out, for the bound that weights alone set.
    dtype: of weights, activations and cache.

    Raises:
        ValueError: for sizes that are no positive whole numbers, or a context shorter than the prompt.
    """

    batch_size: int
    input_len: int = 512
    context: int = 2048
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for name, smallest in (("batch_size", 1), ("context", 0), ("input_len", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
                raise ValueError(f"{name} must be a whole number of at least {smallest}, got {value!r}")
        if 0 < self.context < self.input_len:
            raise ValueError(
                f"context={self.context} is shorter than input_len={self.input_len}: the cache holds the prompt too; "
                "make it longer, or 0 for the bound that weights alone set"
            )

    def check(self, config: ModelConfig) -> None:
        """Raises ValueError when the model has no positions for this."""
        longest = max(self.context, self.input_len)
        if longest > config.max_position_embeddings:
            raise ValueError(
                f"{'context' if self.context >= self.input_len else 'input_len'}={longest} is more than the model's "
                f"{config.max_position_embeddings} positions; use a smaller one"
            )


def whole(value: Any) -> Any:
    """The same as Python's own whole number where it is one of another library; anything else as it is."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def default_lengths(config: ModelConfig, input_len: int | None, context: int | None) -> tuple[int, int]:
    """Prompt and context where they were not given: 512 and 2,048 tokens, or as many as the model has positions."""
    context = min(CONTEXT, config.max_position_embeddings) if context is None else context
    if input_len is None:  # a context below 0 is left for `Workload` to refuse, by its own name
        input_len = min(INPUT_LEN, context) if context > 0 else INPUT_LEN
    return input_len, context
