"""What must hold of every greedy result: cached, batched, padded decoding agrees with whole passes over its tokens."""

from collections.abc import Mapping, Sequence

import numpy as np

import moejax
from moejax import DecodeResult, Logprob
from tests.moejax.decoding.tiny_checkpoint import Tiny

# float32 with a running softmax against float64 without: logits of deviation 3 have differed by up to 5e-5.
LOGITS_ATOL = 2e-4
# Where a token or an expert was chosen by less, rounding could decide: no test's prompts are such.
MIN_GAP = 1e-4


def check_greedy(tiny: Tiny, result: DecodeResult) -> None:
    """Compares all that a greedy result without penalties holds with a pass over prompt and output in numpy."""
    (output,) = result.outputs
    prompt = result.prompt_token_ids
    reference = tiny.reference([*prompt, *output.token_ids])
    predicted = reference.logprobs[len(prompt) - 1 : -1]
    best, second = -np.sort(-predicted, axis=-1)[:, :2].T
    assert (best - second).min() > MIN_GAP and reference.router_gap > MIN_GAP, "near a tie, choose other prompts"
    assert output.token_ids == predicted.argmax(axis=-1).tolist()
    if output.logprobs is not None:
        assert output.cumulative_logprob is not None
        check_logprobs(output.logprobs, output.token_ids, predicted)
        chosen = sum(place[token] for place, token in zip(predicted, output.token_ids, strict=True))
        np.testing.assert_allclose(output.cumulative_logprob, chosen, atol=LOGITS_ATOL * len(output.token_ids))
    if result.prompt_logprobs is not None:
        assert result.prompt_logprobs[0] is None
        entries = [entry for entry in result.prompt_logprobs if entry is not None]
        assert len(entries) == len(prompt) - 1
        check_logprobs(entries, prompt[1:], reference.logprobs[: len(prompt) - 1])
    if output.routed_experts is not None:  # the last token was not fed
        np.testing.assert_array_equal(output.routed_experts, reference.experts[:-1])


def check_logprobs(entries: Sequence[Mapping[int, Logprob]], tokens: Sequence[int], expected: np.ndarray) -> None:
    """Every entry's log-probabilities and ranks against `expected` [tokens, V]."""
    for entry, token, logprobs in zip(entries, tokens, expected, strict=True):
        assert token in entry
        ids = list(entry)
        np.testing.assert_allclose([entry[i].logprob for i in ids], logprobs[ids], rtol=0, atol=LOGITS_ATOL)
        for i in ids:  # closer than rounding, either may come first
            lowest = 1 + np.count_nonzero(logprobs > logprobs[i] + 2 * LOGITS_ATOL)
            highest = np.count_nonzero(logprobs >= logprobs[i] - 2 * LOGITS_ATOL)
            assert lowest <= entry[i].rank <= highest


def check_full_forward(tiny: Tiny, rows: Sequence[Sequence[int]], width: int) -> None:
    """`moejax.logits` of every row against numpy. Rows are filled up to one width: what comes later changes nothing."""
    filled = [[*row, *[1] * (width - len(row))] for row in rows]
    for row, logits in zip(rows, moejax.logits(tiny.model, filled), strict=True):
        assert (logits.dtype, logits.shape) == (np.float32, (width, tiny.config["vocab_size"]))
        np.testing.assert_allclose(logits[: len(row)], tiny.reference(row).logits, rtol=0, atol=LOGITS_ATOL)
