"""Requests' sampling parameters as the arrays that compiled steps take."""

from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from moejax.decoding.sampling_params import SamplingParams
from moejax.decoding.sequences import Sequence
from moejax.decoding.state import Features, SamplingState
from moejax.runtime.ambient import in_settled

_PADDING = SamplingParams(max_tokens=1)


def sampling_state(sequences: Collection[Sequence | None], features: Features, entropy: int) -> SamplingState:
    """The sampling parameters of `sequences` (None: padding) as arrays; `entropy` is for those without a seed."""
    params = [_PADDING if one is None else one.request.params for one in sequences]

    def column(name: str, dtype: type) -> Any:
        return np.array([getattr(one, name) for one in params], dtype)

    most = np.iinfo(np.int32).max
    top_k: Any = np.array([min(one.top_k, most) for one in params], np.int32)
    stop_ids: Any = np.full((len(params), features.stop_ids), -1, np.int32)
    bias_ids: Any = np.full((len(params), features.biases), -1, np.int32)
    biases: Any = np.zeros((len(params), features.biases), np.float32)
    keys: Any = np.zeros((len(params), 2), np.uint32)
    for place, one in enumerate(sequences):
        if one is not None:
            stop_ids[place, : len(one.request.stop_ids)] = one.request.stop_ids
            for number, (token, bias) in enumerate(dict(one.request.params.logit_bias).items()):
                bias_ids[place, number], biases[place, number] = token, bias
            keys[place] = _key(one, entropy)
    return SamplingState(
        temperature=column("temperature", np.float32),
        top_k=top_k,
        top_p=column("top_p", np.float32),
        min_p=column("min_p", np.float32),
        repetition_penalty=column("repetition_penalty", np.float32),
        presence_penalty=column("presence_penalty", np.float32),
        frequency_penalty=column("frequency_penalty", np.float32),
        bias_ids=bias_ids,
        biases=biases,
        key=keys,
        max_tokens=column("max_tokens", np.int32),
        min_tokens=column("min_tokens", np.int32),
        stop_ids=stop_ids,
    )


def in_prompts(sequences: Collection[Sequence | None], vocabulary: int) -> Any:
    """Which tokens of the vocabulary each sequence's prompt has, bool [sequences, vocabulary]."""
    found = np.zeros((len(sequences), vocabulary), bool)
    if vocabulary:
        for place, one in enumerate(sequences):
            if one is not None:
                found[place, one.request.prompt] = True
    return found


@in_settled
def shared_entropy() -> int:
    """Fresh random bits, the same in all processes: they must draw the same tokens."""
    bits: Any = np.array(np.random.SeedSequence().generate_state(2))
    if jax.process_count() > 1:
        bits = multihost_utils.broadcast_one_to_all(bits)
    return int(bits[0]) << 32 | int(bits[1])


def _key(sequence: Sequence, entropy: int) -> tuple[int, ...]:
    """64 bits for a sequence's random numbers, from its seed (or `entropy` and its request) and the output's number."""
    seed = sequence.request.params.seed
    source = [entropy, sequence.request.index, sequence.output] if seed is None else [seed, sequence.output]
    return tuple(np.random.SeedSequence(source).generate_state(2).tolist())
