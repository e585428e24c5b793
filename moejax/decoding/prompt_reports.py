"""What is reported of prompts that were fed, put together from their parts."""

import jax
import numpy as np

from moejax.decoding.failures import NonFiniteLogitsError
from moejax.decoding.logprobs import scores_at
from moejax.decoding.results import TokenLogprobs
from moejax.decoding.sequences import SequenceGroup, token_logprobs


def prompt_logprobs(group: SequenceGroup, *, index: int, dtype: str) -> list[TokenLogprobs | None] | None:
    """Log-probabilities of the tokens of a prompt, of the first of which there are none; None where not asked for.

    Args:
        group: the first sequences of the prompt, which was fed.
        index, dtype: of the prompt and of the model, for an error.

    Raises:
        NonFiniteLogitsError: where they are NaN.
    """
    best, prompt = group.request.params.prompt_logprobs, group.request.prompt
    if best is None:
        return None
    parts = [report.scores for report in group.prompt_reports if report.scores is not None]
    scores = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)  # [all parts' T], of the token that follows
    if np.isnan(scores.best_logprobs[: len(prompt) - 1]).any():
        raise NonFiniteLogitsError(index=index, tokens=None, dtype=dtype)
    tokenizer = group.sequences[0].tokenizer
    rest = [token_logprobs(tokenizer, token, scores_at(scores, at), best) for at, token in enumerate(prompt[1:])]
    return [None, *rest]
