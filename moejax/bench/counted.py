"""Closed forms: bytes that a decode step must read and FLOPs that tokens need, from sizes and routing. Imports no JAX.

They count what any correct implementation has to do (each chosen expert read once per step, nothing padded), so that
utilisation is of useful work. The experts of a step are the ones that the router chose, not an expectation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from moejax.families.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What one piece of work takes: bytes read of weights and cache, FLOPs of matrix products and attention."""

    weight_bytes: int
    cache_bytes: int
    flops: int

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes


def token_flops(config: ModelConfig, position: int) -> int:
    """FLOPs of one token at `position` (0 is the first): projections, router, chosen experts, attention, no head."""
    attention = 2 * config.embed_dim * config.head_dim * (config.num_heads + config.num_kv_heads)
    experts = config.experts_per_token * config.num_expert_parameters
    router = config.embed_dim * config.num_experts
    seen = min(position + 1, config.sliding_window or position + 1)
    scores = 2 * config.num_heads * config.head_dim * seen  # queries with keys, weights with values
    return 2 * config.num_layers * (attention + experts + router + scores)


def head_flops(config: ModelConfig) -> int:
    """FLOPs of one token's logits."""
    return 2 * config.embed_dim * config.vocab_size


def prefill_flops(config: ModelConfig, lengths: Sequence[int]) -> int:
    """FLOPs of prompts of these lengths and the logits after the last token of each."""
    return sum(sum(token_flops(config, position) for position in range(length)) for length in lengths) + len(
        lengths
    ) * head_flops(config)


def decode_steps(
    config: ModelConfig, first_position: int, routed: Int[np.ndarray, "B steps L A"], item_size: int
) -> list[Counted]:
    """What each decode step takes, from the experts that each row's token chose in each layer.

    Args:
        first_position: of the token that the first step feeds, the same in all rows.
        routed: expert ids.  item_size: bytes of a weight and of a cache element.
    """
    batch, steps = routed.shape[:2]
    always = config.num_layers * config.embed_dim * (
        2 * config.head_dim * (config.num_heads + config.num_kv_heads) + config.num_experts + 2
    ) + config.embed_dim * (config.vocab_size + 1)  # attention, routers, norms; the head and its norm
    looked_up = batch * config.embed_dim  # rows of the embedding
    counted = []
    for step in range(steps):
        distinct = sum(len(np.unique(routed[:, step, layer])) for layer in range(config.num_layers))
        position = first_position + step
        seen = min(position + 1, config.sliding_window or position + 1)
        counted.append(
            Counted(
                weight_bytes=item_size * (always + looked_up + distinct * config.num_expert_parameters),
                cache_bytes=item_size * batch * seen * config.cache_elements_per_token,
                flops=batch * (token_flops(config, position) + head_flops(config)),
            )
        )
    return counted


def mean(counted: Sequence[Counted]) -> Counted:
    """The mean of several, rounded to whole bytes and FLOPs; of none, nothing."""
    count = max(1, len(counted))
    return Counted(
        weight_bytes=round(sum(one.weight_bytes for one in counted) / count),
        cache_bytes=round(sum(one.cache_bytes for one in counted) / count),
        flops=round(sum(one.flops for one in counted) / count),
    )
