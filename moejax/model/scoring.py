"""Logits at every position of given texts."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

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
