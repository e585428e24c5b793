"""Whether a peer's greedy tokens are right: before its speed is worth anything. Imports no JAX."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moejax.bench.process import PeerProcess

# Of the gaps between the best logit and that of each token that a peer took, in standard deviations of the logits,
# computed by moejax in float32 along the peer's own continuation: the largest, and the mean over all tokens. A token
# taken at random is about 4 away. In 16 bits a close choice turns, of a token or of an expert, and a model of random
# weights has many: 16 x 24 tokens of the 742m model in bfloat16 are 0.02 away in the mean, but a few of them, of
# transformers as of moejax, 1 to 2 (docs/benchmarks.md). What a few close choices explain is right; tokens that are off
# throughout, or one that no rounding explains, are not. In float32 nothing but a tie may turn: the strict comparison.
WORST = {"float32": 1e-3, "bfloat16": 3.0, "float16": 3.0}
MEAN = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}

Gaps = dict[tuple[int, ...], list[float]]  # prompt and continuation, with the prompt's length first -> of each token
Judgement = Literal["same tokens", "right up to rounding", "WRONG"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of comparing a peer's tokens.

    judgement: same tokens as moejax's float32 choice, or within the tolerance of it, or wrong.
    worst_gap, mean_gap: over all tokens, in standard deviations of the logits.  rows: that were compared.
    """

    judgement: Judgement
    worst_gap: float
    mean_gap: float
    rows: int

    @property
    def right(self) -> bool:
        return self.judgement != "WRONG"


def judge(
    reference: PeerProcess, prompts: list[list[int]], tokens: list[list[int]], dtype: str, known: Gaps
) -> Verdict:
    """Scores every token of every row by the reference's logits along the peer's own continuation.

    known: gaps that were asked for before, to which new ones are added: systems that agree are asked about once.
    """
    keys = [(len(prompt), *prompt, *row) for prompt, row in zip(prompts, tokens, strict=True)]
    new = [place for place, key in enumerate(keys) if key not in known]
    if new:
        scored = reference.score([prompts[place] for place in new], [tokens[place] for place in new])
        known.update(zip([keys[place] for place in new], scored, strict=True))
    gaps = np.concatenate([known[key] for key in keys])
    worst, mean = float(gaps.max()), float(gaps.mean())  # NaN if one is, which is within no tolerance
    within = worst <= WORST[dtype] and mean <= MEAN[dtype]
    judgement: Judgement = "WRONG" if not within else "same tokens" if worst == 0 else "right up to rounding"
    return Verdict(judgement=judgement, worst_gap=worst, mean_gap=mean, rows=len(tokens))
