"""What `SamplingParams` says about the next token, in numpy and float64, one row and one token at a time."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from moejax import SamplingParams


def penalized(logits: np.ndarray, prompt: Sequence[int], output: Sequence[int], params: SamplingParams) -> np.ndarray:
    """Logits [V] after the penalties."""
    result = logits.astype(np.float64)
    for token in {*prompt, *output}:
        result[token] *= 1 / params.repetition_penalty if result[token] > 0 else params.repetition_penalty
    for token, count in Counter(output).items():
        result[token] -= params.frequency_penalty * count + params.presence_penalty
    return result


def kept(scaled: np.ndarray, params: SamplingParams, slack: float = 0.0) -> np.ndarray:
    """Which tokens may be sampled, bool [V], from logits [V] divided by the temperature.

    `slack` moves the bounds of min_p and top_p so that more tokens (above 0) or fewer (below 0) pass.
    """
    probability = np.exp(scaled.astype(np.float64) - scaled.max())
    keep = probability >= min(1.0, params.min_p * (1 - slack))
    order = sorted(np.flatnonzero(keep), key=lambda token: -scaled[token])
    if params.top_k > 0:
        order = [token for token in order if scaled[token] >= scaled[order[min(params.top_k, len(order)) - 1]]]
    if params.top_p < 1:
        share = probability / probability[order].sum()
        reached, count = 0.0, 0
        while count < len(order) and (count == 0 or reached < params.top_p + slack):
            reached += share[order[count]]
            count += 1
        order = [token for token in order if scaled[token] >= scaled[order[count - 1]]]
    return np.isin(np.arange(len(scaled)), order)


def distribution(
    logits: np.ndarray, params: SamplingParams, prompt: Sequence[int] = (), output: Sequence[int] = ()
) -> np.ndarray:
    """The probability of every token, [V], for a temperature above 0."""
    scaled = penalized(logits, prompt, output, params) / params.temperature
    probability = np.where(kept(scaled, params), np.exp(scaled - scaled.max()), 0.0)
    return probability / probability.sum()
