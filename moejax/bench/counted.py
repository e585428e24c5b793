"""Closed forms: bytes that a decode step must read and FLOPs that tokens need, from sizes and routing. Imports no JAX.

They count what any correct implementation has to do (each chosen expert read once per step, nothing padded), so that
utilisation is of useful work. The experts of a step are the ones that the router chose, not an expectation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from moejax._sharding import MeshConfig, Rules
from moejax.families.config import ModelConfig
from moejax.families.kv_cache import cache_elements_per_token
from moejax.families.table import weights_of
from moejax.weights.counts import DeviceShare, device_share


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What one piece of work takes: bytes read of weights and cache, FLOPs of matrix products and attention."""

    weight_bytes: int
    cache_bytes: int
    flops: int

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes


def _whole(config: ModelConfig) -> DeviceShare:
    """What one device that holds everything holds of each part."""
    return device_share(weights_of(config), Rules.of(MeshConfig()))


def token_flops(config: ModelConfig, position: int) -> int:
    """FLOPs of one token at `position` (0 is the first): projections, router, chosen experts, attention, no head."""
    share = _whole(config)
    products = share.multiplied["attention"] + share.multiplied["router"] + share.multiplied["mlp"]
    products += config.experts_per_token * share.multiplied["experts"]
    seen = min(position + 1, config.sliding_window or position + 1)
    scores = 4 * config.num_heads * config.head_dim * seen  # queries with keys, weights with values
    return 2 * products + config.num_layers * scores


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
    batch, steps, layers = routed.shape[:3]
    share = _whole(config)
    head = config.embed_dim * (config.vocab_size + 1)  # and its norm; tied or not, the table is read
    always = share.elements["attention"] + share.elements["router"] + share.elements["mlp"] + head
    one_expert = share.elements["experts"] // max(1, layers)
    looked_up = batch * config.embed_dim  # rows of the embedding
    counted = []
    for step in range(steps):
        distinct = sum(len(np.unique(routed[:, step, layer])) for layer in range(layers))
        position = first_position + step
        seen = min(position + 1, config.sliding_window or position + 1)
        counted.append(
            Counted(
                weight_bytes=item_size * (always + looked_up + distinct * one_expert),
                cache_bytes=item_size * batch * seen * cache_elements_per_token(config),
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
