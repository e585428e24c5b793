"""What each device holds: weights, cache and, as an estimate, what a call needs besides. Imports no JAX."""

from functools import lru_cache

from moejax.families.config import ModelConfig
from moejax.families.kv_cache import cache_placements
from moejax.families.table import weights_of
from moejax.planning.calls import Call, cache_slots, decode_call, prefill_cache_shape, prefill_calls
from moejax.planning.rows import Footprint
from moejax.planning.workload import Workload
from moejax.weights.counts import DeviceShare, device_share, num_places
from sharding import Rules, bytes_per_device
from sharding.collectives.collective import ITEM_SIZES


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


def cache_bytes(config: ModelConfig, rules: Rules, rows: int, slots: int, dtype: str) -> int:
    """Bytes of one device's keys and values of all layers."""
    return bytes_per_device(cache_placements(config, rules, rows, slots, dtype))


def footprint(config: ModelConfig, rules: Rules, workload: Workload) -> Footprint:
    """What one device holds for a workload."""
    rows = decode_call(workload, rules).rows
    prompts, length = prefill_cache_shape(workload, rules)
    first = next(prefill_calls(workload, rules))
    prefill = activation_bytes(config, rules, first, workload.dtype)
    prefill += cache_bytes(config, rules, prompts, length, workload.dtype)
    decode = activation_bytes(config, rules, decode_call(workload, rules), workload.dtype)
    return Footprint(
        weights=weight_bytes(config, rules, workload.dtype),
        kv=cache_bytes(config, rules, rows, cache_slots(workload), workload.dtype),
        activations=max(prefill, decode),
    )


def activation_bytes(config: ModelConfig, rules: Rules, call: Call, dtype: str) -> int:
    """What one call computes with, as an estimate: the largest arrays of a layer at the same time, and the logits.

    Of a device's own tokens: the residual twice, and queries, keys and values in float32. Of its group's tokens: one
    row per expert chosen, in the activations' dtype and twice in float32 (each expert's results, and their sum).
    """
    item = ITEM_SIZES[dtype]
    own, group = call.own_rows(rules) * call.width, call.rows // rules.parts("groups") * call.width
    heads = config.num_heads // rules.parts("q_heads") + 2 * (config.num_kv_heads // rules.parts("kv_heads"))
    attention = own * (2 * config.embed_dim * item + heads * config.head_dim * 4)
    experts = group * config.experts_per_token * config.embed_dim * (item + 8)
    logits = call.own_rows(rules) * (config.vocab_size // rules.parts("vocab")) * 4 * 2
    return attention + experts + logits
