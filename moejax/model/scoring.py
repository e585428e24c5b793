"""Logits at every position of given texts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Float, Int

from moejax.families.config import ModelConfig
from moejax.model.cache import empty_cache
from moejax.model.model import Transformer
from moejax.runtime.buckets import MIN_PROMPT, length_bucket


def full_logits(model: Transformer, tokens: Int[Array, "B T"], length: Int[Array, " B"]) -> Float[Array, "B T V"]:
    """Logits at every position, teacher-forced."""
    batch, width = tokens.shape
    dtype = model.embed.table.get_value().dtype
    cache = empty_cache(model.config, batch, width, dtype, model.parallel)
    hidden, _, _ = model(tokens, jnp.zeros((batch,), jnp.int32), length, cache)
    return model.parallel.constrain(model.logits(hidden))


def teacher_forced(
    model: Transformer, tokens: Int[Array, "B T"], lengths: Int[Array, " B"] | None
) -> Float[Array, "B T V"]:
    """The same for any batch and width, padded to what the model takes; without lengths all tokens are real."""
    batch, width = tokens.shape
    parts = model.parallel.rules.parts("batch")
    padding = ((0, -batch % parts), (0, length_bucket(width, MIN_PROMPT) - width))
    lengths = jnp.full((batch,), width, jnp.int32) if lengths is None else lengths.astype(jnp.int32)
    padded = jnp.pad(tokens.astype(jnp.int32), padding)
    return full_logits(model, padded, jnp.pad(lengths, padding[0]))[:batch, :width]


def check_tokens(tokens: Any, lengths: Any, config: ModelConfig, limit: int) -> None:
    """Whether `teacher_forced` can take them: shapes and dtypes, and the numbers where they are known.

    limit: most tokens of a sequence.

    Raises:
        ValueError: for anything else than whole numbers [B, T] and [B], in range.
    """
    _check_array("tokens", tokens, "[B, T]")
    batch, width = tokens.shape
    if not batch or not 1 <= width <= limit:
        raise ValueError(
            f"tokens have shape [{batch}, {width}]: give at least one sequence, of 1 to {limit} tokens (max_seq_len)"
        )
    _check_numbers("tokens", tokens, 0, config.vocab_size - 1)
    if lengths is None:
        return
    _check_array("lengths", lengths, "[B]")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths have shape {list(lengths.shape)}, and tokens {batch} sequences: give one for each")
    _check_numbers("lengths", lengths, 0, width)


def _check_array(name: str, given: Any, shape: str) -> None:
    if not isinstance(given, jax.Array | np.ndarray):
        raise ValueError(f"{name} must be an array {shape}, got a {type(given).__name__}: jax.numpy.array makes one")
    if given.ndim != shape.count(",") + 1:
        raise ValueError(f"{name} must be an array {shape}, got the shape {list(given.shape)}: reshape it")
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(f"{name} must be whole numbers, got {given.dtype}: convert them first")


def _check_numbers(name: str, given: Any, low: int, high: int) -> None:
    """Nothing is known of arrays that are traced, or partly in another process."""
    if isinstance(given, Tracer) or (isinstance(given, jax.Array) and not given.is_fully_addressable):
        return
    numbers = np.asarray(given)
    if wrong := numbers[(numbers < low) | (numbers > high)].tolist():
        raise ValueError(f"{name} must be from {low} to {high}, got {wrong[0]}")
