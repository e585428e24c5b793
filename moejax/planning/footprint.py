"""What each device holds: weights, cache and, as an estimate, what a call needs besides. Imports no JAX."""

from dataclasses import dataclass
from functools import lru_cache

from moejax.families.config import ModelConfig
from moejax.planning import coefficients
from moejax.planning.calls import ProgramCall, cache_slots, decode_call, prefill_cache_shape, prefill_calls
from moejax.planning.rows import Footprint
from moejax.planning.workload import Workload
from moejax.weights.declarations import cached, declared_placement, layer_params, outer_params
from sharding import Rules
from sharding.collectives.collective import ITEM_SIZES


@dataclass(frozen=True, kw_only=True)
class WeightBytes:
    """Bytes of the parameters that one device holds.

    attention: of a layer, with its norms and router.  expert: of a layer, all experts that the device holds a part of.
    one_expert: its part of one.  embed, head: the tables; one and the same where they are tied.  norm: the last.
    """

    attention: int
    expert: int
    one_expert: int
    embed: int
    head: int
    norm: int
    layers: int
    tied: bool

    @property
    def total(self) -> int:
        return self.layers * (self.attention + self.expert) + self.embed + self.norm + (0 if self.tied else self.head)


@lru_cache(maxsize=4096)
def weight_bytes(config: ModelConfig, rules: Rules, dtype: str) -> WeightBytes:
    """Bytes of one device's parameters: every layer is like the first."""
    layer = {
        path: declared_placement(path, one, dtype, rules).bytes_per_device
        for path, one in layer_params(config, "stacked", 1)
    }
    outer = {path: declared_placement(path, one, dtype, rules).bytes_per_device for path, one in outer_params(config)}
    expert = sum(size for path, size in layer.items() if ".experts." in path)
    return WeightBytes(
        attention=sum(layer.values()) - expert,
        expert=expert,
        one_expert=expert * rules.parts("experts") // config.num_experts,
        embed=outer["embed.table"],
        head=outer["embed.table" if config.tie_embeddings else "head.table"],
        norm=outer["final_norm.scale"],
        layers=config.num_layers,
        tied=config.tie_embeddings,
    )


def cache_bytes(config: ModelConfig, rules: Rules, rows: int, slots: int, dtype: str) -> int:
    """Bytes of one device's keys and values of all layers."""
    one = declared_placement("cache", cached(config, rows, slots), dtype, rules)
    return coefficients.COST.cached_arrays * config.num_layers * one.bytes_per_device


def footprint(config: ModelConfig, rules: Rules, workload: Workload) -> Footprint:
    """What one device holds for a workload."""
    rows = decode_call(workload, rules).rows
    prompts, length = prefill_cache_shape(workload, rules)
    first = next(prefill_calls(workload, rules))
    prefill = activation_bytes(config, rules, first, workload.dtype)
    prefill += cache_bytes(config, rules, prompts, length, workload.dtype)
    decode = activation_bytes(config, rules, decode_call(workload, rules), workload.dtype)
    return Footprint(
        weights=weight_bytes(config, rules, workload.dtype).total,
        kv=cache_bytes(config, rules, rows, cache_slots(workload), workload.dtype),
        activations=max(prefill, decode),
    )


def activation_bytes(config: ModelConfig, rules: Rules, call: ProgramCall, dtype: str) -> int:
    """What one call computes with, as an estimate: the largest arrays of a layer at the same time, and the logits.

    A device's own tokens take the residual twice, and queries, keys and values in float32. Its group's tokens take one
    row per expert chosen, in the activations' dtype and twice in float32 (each expert's results, and their sum).
    """
    item, cost = ITEM_SIZES[dtype], coefficients.COST
    own, group = call.own_rows(rules) * call.width, call.rows // rules.parts("groups") * call.width
    heads = cost.query_copies * config.num_heads // rules.parts("q_heads")
    heads += cost.key_copies * config.num_kv_heads // rules.parts("kv_heads")
    attention = own * (cost.residuals * config.embed_dim * item + heads * config.head_dim * cost.float32_bytes)
    row = config.embed_dim * (cost.expert_inputs * item + cost.expert_results * cost.float32_bytes)
    logits = call.own_rows(rules) * (config.vocab_size // rules.parts("vocab"))
    return attention + group * config.experts_per_token * row + logits * cost.logit_copies * cost.float32_bytes
