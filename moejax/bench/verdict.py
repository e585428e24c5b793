"""Whether a peer's greedy tokens are right: before its speed is worth anything. Imports no JAX."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moejax.bench.process import PeerProcess

# Of the largest gap between the best logit and that of a peer's token, in standard deviations of the logits, computed
# by moejax in float32. In 16 bits a close choice of a token or an expert turns: measured up to 0.25 for moejax and 0.15
# for transformers over 48 tokens of the 186m model, whose random routers have many near-ties (docs/benchmarks.md). A
# token taken at random is 4 away. In float32 nothing but a tie may turn: that is the strict comparison.
TOLERANCE = {"float32": 1e-3, "bfloat16": 1.0, "float16": 1.0}

Gaps = dict[tuple[int, ...], float]  # prompt and continuation, with the prompt's length first -> its gap
Judgement = Literal["same tokens", "right up to rounding", "WRONG"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of comparing a peer's tokens.

    judgement: same tokens as moejax's float32 choice, or within the tolerance of it, or wrong.
    worst_gap: in standard deviations of the logits.  rows: that were compared.
    """

    judgement: Judgement
    worst_gap: float
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
        gaps = reference.score([prompts[place] for place in new], [tokens[place] for place in new])
        known.update(zip([keys[place] for place in new], gaps, strict=True))
    worst = float(np.max([known[key] for key in keys]))  # NaN if one is, which is within no tolerance
    within = worst <= TOLERANCE[dtype]
    judgement: Judgement = "WRONG" if not within else "same tokens" if worst == 0 else "right up to rounding"
    return Verdict(judgement=judgement, worst_gap=worst, rows=len(tokens))
