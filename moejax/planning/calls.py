"""The calls of compiled programs that a workload takes: their shapes, as `moejax.decoding.engine` makes them."""

from collections.abc import Iterator
from dataclasses import dataclass

from moejax._sharding import Rules
from moejax.planning import coefficients
from moejax.planning.workload import Workload
from moejax.runtime.buckets import (
    MIN_CACHE,
    PREFILL_CHUNK,
    batch_bucket,
    length_bucket,
    prompt_bucket,
    prompts_per_call,
)


@dataclass(frozen=True, kw_only=True)
class ProgramCall:
    """One call: a decode step, or a part of a prefill.

    sequences, width: what the program computes, padding included: on all devices, and tokens of each.
    requests, tokens: how many of them are real.  positions: of the cache of each that are read.
    visited: keys that a query of attention is compared with, on average.  chooses: whether it ends in tokens.
    """

    sequences: int
    width: int
    requests: int
    tokens: int
    positions: int
    visited: float
    chooses: bool

    def own_sequences(self, rules: Rules) -> int:
        """Sequences that one device has between layers."""
        return self.sequences // rules.parts("batch")

    def own_tokens(self, rules: Rules) -> int:
        """Tokens that one device has between layers, padding included."""
        return self.own_sequences(rules) * self.width

    def group_tokens(self, rules: Rules) -> int:
        """Tokens that are real, of the fullest of the groups of devices that together hold all experts."""
        return min(self.requests, self.sequences // rules.parts("groups")) * self.tokens


def cache_positions(workload: Workload) -> int:
    """Positions that the cache has for each sequence."""
    if not workload.context:
        return 0
    return max(length_bucket(workload.context, MIN_CACHE), prompt_bucket(workload.input_len))


def decode_call(workload: Workload, rules: Rules) -> ProgramCall:
    """One step of the decode loop: attention reads every position of the cache, filled or not."""
    positions = cache_positions(workload)
    return ProgramCall(
        sequences=batch_bucket(workload.batch_size, rules.parts("batch")),
        width=1,
        requests=workload.batch_size,
        tokens=1,
        positions=positions,
        visited=positions,
        chooses=True,
    )


def prefill_calls(workload: Workload, rules: Rules) -> Iterator[ProgramCall]:
    """Groups of prompts, each fed chunk by chunk."""
    length = prompt_bucket(workload.input_len)
    width = min(length, PREFILL_CHUNK)
    waiting = workload.batch_size
    while waiting:
        requests = min(waiting, prompts_per_call(width))
        waiting -= requests
        for start in range(0, workload.input_len, width):
            yield ProgramCall(
                sequences=batch_bucket(requests, rules.parts("batch")),
                width=width,
                requests=requests,
                tokens=min(width, workload.input_len - start),
                positions=start + width,
                visited=start + coefficients.COST.visible_share * (width + 1),
                chooses=True,
            )


def prefill_cache_shape(workload: Workload, rules: Rules) -> tuple[int, int]:
    """Sequences and positions of the cache that a group of prompts has while it is fed.

    It is one of its own where the group is not the whole batch.
    """
    length = prompt_bucket(workload.input_len)
    requests = min(workload.batch_size, prompts_per_call(min(length, PREFILL_CHUNK)))
    return batch_bucket(requests, rules.parts("batch")), length
