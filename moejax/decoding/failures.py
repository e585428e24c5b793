"""Why a text could not be continued. Imports no JAX."""

from moejax.decoding.sequences import NewTokens, Sequence


class NonFiniteLogitsError(FloatingPointError):
    """The logits of a text's next token are NaN or infinite, so that no token can be chosen by them.

    index: of the prompt.  tokens: of the text that had been generated before, None where it is the prompt itself.
    dtype: in which they were computed.
    """

    def __init__(self, *, index: int, tokens: int | None, dtype: str) -> None:
        where = "inside the prompt" if tokens is None else f"after {tokens} generated tokens"
        cause = (
            "float16 ends at 65504: use dtype=bfloat16 or dtype=float32"
            if dtype == "float16"
            else "weights that are damaged or not finite do this: `moejax verify` reads them all"
        )
        super().__init__(f"prompt {index}: {where} its logits are not finite, computed in {dtype}; {cause}")
        self.index, self.tokens, self.dtype = index, tokens, dtype


def failure_in(gained: list[NewTokens], dtype: str) -> Exception | None:
    """The first failure among the sequences that a call gave something to."""
    failures = (failure_of(one.sequence, dtype) for one in gained)
    return next((failure for failure in failures if failure is not None), None)


def failure_of(sequence: Sequence, dtype: str) -> Exception | None:
    """What a sequence failed with, if it did."""
    if sequence.failed:
        return NonFiniteLogitsError(index=sequence.request.index, tokens=len(sequence.tokens), dtype=dtype)
    return sequence.error
