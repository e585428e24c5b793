"""What micro-batches hide: a piece's exchange behind what the next piece computes. Imports no JAX."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from moejax._sharding import Rules
from moejax._sharding.collectives import Collective
from moejax.families.config import ModelConfig
from moejax.moe.split import FEWEST_ROWS
from moejax.planning.calls import ProgramCall

DIVIDED = ("attention", "moe")  # scopes whose collectives are of a piece


def pieces(call: ProgramCall, rules: Rules, micro_batches: int) -> int:
    """Into how many a call is divided (`moe.parallel.Parallel.in_micro_batches`); 1 where there are no devices to
    exchange with."""
    if rules.mesh.size == 1:
        return 1
    return max(1, min(micro_batches, call.own_tokens(rules) // FEWEST_ROWS))


def piece(call: ProgramCall, count: int) -> ProgramCall:
    """One of so many: of a prompt a part of its tokens, of a step a part of its sequences."""
    if call.width > 1:
        return replace(call, width=-(-call.width // count), tokens=-(-call.tokens // count))
    return replace(call, sequences=-(-call.sequences // count), requests=-(-call.requests // count))


def divided(collectives: Iterable[Collective], count: int) -> list[Collective]:
    """Those of layers in so many pieces."""
    found: list[Collective] = []
    for one in collectives:
        parts = count if one.scope in DIVIDED else 1
        found += [replace(one, elements=-(-one.elements // parts))] * parts
    return found


def hidden(exchanged: Mapping[str, float], computed: Mapping[str, float], count: int) -> float:
    """Seconds of exchanges behind which something is computed, by scope: all but the last piece's, as far as the next
    piece takes as long.
    """
    return sum((count - 1) / count * min(exchanged[scope], computed[scope]) for scope in DIVIDED)


def output_share(config: ModelConfig) -> float:
    """Of the weights of attention, those of the output projection, behind which an earlier piece's is summed."""
    queries, keys_and_values = config.num_heads, 2 * config.num_kv_heads
    return queries / (2 * queries + keys_and_values)


def exposed(latency: float, bandwidth: float, hidden_seconds: float) -> tuple[float, float]:
    """What is left of both, the bandwidth's share hidden first."""
    left = max(0.0, hidden_seconds - bandwidth)
    return max(0.0, latency - left), max(0.0, bandwidth - hidden_seconds)
