"""What requests may ask of a server, whose programs are all compiled before the first one comes."""

from moejax.decoding.sampling_params import MAX_BIASES
from moejax.decoding.state import Features

MAX_STOP_IDS = 16  # stop tokens of a request, EOS included
MAX_STOP_STRINGS, MAX_STOP_CHARACTERS = 1024, 16_384  # of a request, whose text is searched for each
MAX_LOGPROBS = 20  # as OpenAI's top_logprobs allows


def served_features(vocabulary: int) -> tuple[Features, ...]:
    """What a call can do: choose greedily, sample, or everything; their states have the same shapes.

    All report experts: the router knows them anyway, and handing them out costs next to nothing.
    """
    everything = Features(
        sample=True,
        filter=True,
        penalize=True,
        biases=MAX_BIASES,
        min_tokens=True,
        logprobs=min(MAX_LOGPROBS, vocabulary),
        experts=True,
        stop_ids=MAX_STOP_IDS,
    )
    greedy = Features(experts=True, stop_ids=MAX_STOP_IDS)
    sampled = Features(sample=True, experts=True, stop_ids=MAX_STOP_IDS)
    return greedy, sampled, everything
