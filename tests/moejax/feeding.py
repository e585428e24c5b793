"""A call that feeds the prompts of a whole batch, as shapes without arrays: what tests compile and lower."""

from typing import Any

import jax
import jax.numpy as jnp

from moejax.decoding import steps
from moejax.decoding.shapes import FeedShape
from moejax.decoding.state import DecodeState, Features, empty_state
from moejax.families.config import ModelConfig
from moejax.moe.parallel import Parallel

GREEDY = Features()


def feed_whole_batch(
    config: ModelConfig, parallel: Parallel, *, prompts: int, width: int, length: int, dtype: str = "bfloat16"
) -> tuple[FeedShape, DecodeState, steps.Feed]:
    """Prompts of up to `width` tokens in place, in a cache of `length` positions each, chosen from greedily."""
    state = jax.eval_shape(lambda: empty_state(config, GREEDY, prompts, length, dtype, parallel))

    def numbers(*sizes: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    feed = steps.Feed(
        tokens=numbers(prompts, width),
        next_tokens=numbers(prompts, width),
        starts=numbers(prompts),
        lengths=numbers(prompts),
        sources=numbers(prompts),
        fed=numbers(prompts),
        slots=numbers(prompts),
        in_prompt=numbers(prompts, 0, dtype=jnp.bool_),
        sampling=state.sampling,
    )
    return FeedShape(prompts, width, length, prompts, in_place=True), state, feed
