"""Closed forms: the collectives of one forward pass, from the sizes and the split alone. Imports no JAX.

What XLA compiles is compared with them, mesh by mesh (`tests/moejax/test_mesh_parity.py`). Each lists what one device
takes part in, with the elements that `sharding.collectives` counts: the operand's, or an all-gather's result's.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from moejax._sharding import MESH_AXES, MeshAxes, Rules
from moejax._sharding.collectives import Collective, CollectiveKind
from moejax.families.config import ModelConfig
from moejax.moe.split import DISPATCHES, DispatchName
from moejax.planning import coefficients
from moejax.weights.counts import num_places


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens of one call: `sequences`, a multiple of the parts of the batch, of `length` tokens each."""

    sequences: int
    length: int

    def own(self, rules: Rules) -> int:
        """Tokens that one device has between layers."""
        return self.sequences // rules.parts("batch") * self.length

    def group(self, rules: Rules) -> int:
        """Tokens of the devices that together hold all experts."""
        return self.sequences // rules.parts("groups") * self.length


def embedding_collectives(config: ModelConfig, rules: Rules, tokens: Tokens, dtype: str) -> list[Collective]:
    """What the embedding exchanges: each device looks up what it holds of the vocabulary."""
    return _between(rules, "embed", "all-reduce", rules["vocab"], tokens.own(rules) * config.embed_dim, dtype)


def attention_collectives(config: ModelConfig, rules: Rules, tokens: Tokens, dtype: str) -> list[Collective]:
    """What one attention layer exchanges: what each device's heads add to the output is summed."""
    return _between(rules, "attention", "all-reduce", rules["q_heads"], tokens.own(rules) * config.embed_dim, dtype)


def moe_collectives(
    config: ModelConfig, rules: Rules, dispatch: DispatchName, tokens: Tokens, dtype: str
) -> list[Collective]:
    """What one MoE layer exchanges."""
    found: list[Collective] = []
    for transfer in DISPATCHES[dispatch].transfers:
        axes: MeshAxes = sum((rules[logical] for logical in transfer.over), ())
        count = tokens.own(rules) if transfer.tokens == "own" else tokens.group(rules)
        width = coefficients.COST.routing_arrays * config.experts_per_token if transfer.routing else config.embed_dim
        found += _between(rules, "moe", transfer.kind, axes, count * width, "int32" if transfer.routing else dtype)
    return found


def dense_collectives(config: ModelConfig, rules: Rules, tokens: Tokens, dtype: str) -> list[Collective]:
    """What a layer's feed-forward network without experts exchanges: the parts of its hidden axis are summed."""
    return _between(rules, "mlp", "all-reduce", rules["hidden"], tokens.own(rules) * config.embed_dim, dtype)


def choice_collectives(rules: Rules, tokens: Tokens) -> list[Collective]:
    """What choosing the next token of each row greedily exchanges: best logits and tokens of each part of the
    vocabulary, then the tokens of all sequences.
    """
    own, vocab = tokens.sequences // rules.parts("batch"), rules["vocab"]
    return [
        *_between(rules, "sample", "all-gather", vocab, own * rules.parts("vocab"), "float32"),
        *_between(rules, "sample", "all-gather", vocab, own * rules.parts("vocab"), "int32"),
        *_between(rules, "sample", "all-gather", rules["batch"], tokens.sequences, "int32"),
    ]


def forward_collectives(
    config: ModelConfig, rules: Rules, dispatch: DispatchName, tokens: Tokens, dtype: str
) -> list[Collective]:
    """What the embedding and all layers exchange, in the order in which they run."""
    attention = attention_collectives(config, rules, tokens, dtype)
    moe = moe_collectives(config, rules, dispatch, tokens, dtype)
    dense = dense_collectives(config, rules, tokens, dtype)
    found = embedding_collectives(config, rules, tokens, dtype)
    for layer in range(config.num_layers):
        found += attention + (dense if layer in config.dense_layers else moe)
    return found


def step_collectives(
    config: ModelConfig, rules: Rules, dispatch: DispatchName, sequences: int, dtype: str
) -> list[Collective]:
    """What one greedy decode step exchanges, of so many sequences."""
    tokens = Tokens(sequences=sequences, length=1)
    return forward_collectives(config, rules, dispatch, tokens, dtype) + choice_collectives(rules, tokens)


def report_collectives(config: ModelConfig, rules: Rules) -> list[Collective]:
    """What is exchanged once per call to tell the host how many rows each place of each layer computed."""
    counters = len(config.moe_layers) * num_places(config.num_experts, rules.parts("experts"))
    return [
        *_between(rules, "", "all-gather", rules["experts"], counters, "int32"),
        *_between(rules, "", "all-gather", rules["groups"], rules.parts("groups") * counters, "int32"),
    ]


def by_phase(collectives: Iterable[Collective]) -> list[Collective]:
    """Collectives of a compiled program as they are listed here: without the loop, the scope that of the phase."""
    return [replace(one, in_loop=False, scope=_phase(one)) for one in collectives]


def _phase(one: Collective) -> str:
    phase = one.scope.partition("/")[0]
    # No MoE layer gathers integers: these are the rows that the report counts. In a model with one layer they are
    # stacked with no others, and jax 0.11 leaves them the name of their layer.
    return "" if (phase, one.kind, one.dtype) == ("moe", "all-gather", "int32") else phase


def _between(
    rules: Rules, scope: str, kind: CollectiveKind, axes: MeshAxes, elements: int, dtype: str
) -> list[Collective]:
    """One collective, or none where `axes` hold a single device."""
    ordered = tuple(axis for axis in MESH_AXES if axis in axes)
    one = Collective(kind=kind, axes=ordered, elements=elements, dtype=dtype, in_loop=False, scope=scope)
    return [one] if ordered else []
