"""What each device holds: weights, cache and, as an estimate, what a call needs besides. Imports no JAX."""

from functools import lru_cache

from moejax._sharding import Rules, placement
from moejax._sharding.collectives.collective import ITEM_SIZES
from moejax.families.config import ModelConfig
from moejax.families.kv_cache import CACHE_AXES, cache_shape
from moejax.families.table import weights_of
from moejax.planning import coefficients
from moejax.planning.calls import ProgramCall, cache_positions, decode_call, prefill_cache_shape, prefill_calls
from moejax.planning.rows import Footprint
from moejax.planning.workload import Workload
from moejax.weights.counts import DeviceShare, device_share, num_places


@lru_cache(maxsize=4096)
def device_weights(config: ModelConfig, rules: Rules) -> DeviceShare:
    """What one device holds of each part of a model, in elements."""
    return device_share(weights_of(config), rules)


def weight_bytes(config: ModelConfig, rules: Rules, dtype: str) -> int:
    """Bytes of the parameters that one device holds, empty places for experts included."""
    share, parts = device_weights(config, rules), rules.parts("experts")
    places = num_places(config.num_experts, parts) // parts
    held = sum(count * (places if part == "experts" else 1) for part, count in share.elements.items())
    return held * ITEM_SIZES[dtype]


def cache_bytes(config: ModelConfig, rules: Rules, sequences: int, positions: int, dtype: str) -> int:
    """Bytes of one device's keys and values of all layers."""
    one = placement("cache", cache_shape(config, sequences, positions), dtype, ITEM_SIZES[dtype], CACHE_AXES, rules)
    return coefficients.COST.cached_arrays * config.num_layers * one.bytes_per_device


def footprint(config: ModelConfig, rules: Rules, workload: Workload) -> Footprint:
    """What one device holds for a workload."""
    sequences = decode_call(workload, rules).sequences
    prompts, length = prefill_cache_shape(workload, rules)
    first = next(prefill_calls(workload, rules))
    prefill = activation_bytes(config, rules, first, workload.dtype)
    prefill += cache_bytes(config, rules, prompts, length, workload.dtype)
    decode = activation_bytes(config, rules, decode_call(workload, rules), workload.dtype)
    return Footprint(
        weights=weight_bytes(config, rules, workload.dtype),
        kv=cache_bytes(config, rules, sequences, cache_positions(workload), workload.dtype),
        activations=max(prefill, decode),
    )


def activation_bytes(config: ModelConfig, rules: Rules, call: ProgramCall, dtype: str) -> int:
    """What one call computes with, as an estimate: the largest arrays of a layer at the same time, and the logits.

    A device's own tokens take the residual twice, and queries, keys and values in float32. Its group's tokens take one
    row per expert chosen, in the activations' dtype and twice in float32 (each expert's results, and their sum).
    """
    item, cost = ITEM_SIZES[dtype], coefficients.COST
    own, group = call.own_tokens(rules), call.sequences // rules.parts("groups") * call.width
    heads = cost.query_copies * config.num_heads // rules.parts("q_heads")
    heads += cost.key_copies * config.num_kv_heads // rules.parts("kv_heads")
    attention = own * (cost.residuals * config.embed_dim * item + heads * config.head_dim * cost.float32_bytes)
    row = config.embed_dim * (cost.expert_inputs * item + cost.expert_results * cost.float32_bytes)
    logits = call.own_sequences(rules) * (config.vocab_size // rules.parts("vocab"))
    return attention + group * config.experts_per_token * row + logits * cost.logit_copies * cost.float32_bytes
