"""What rounding explains is right, what it does not is wrong."""

import math
from typing import cast

import pytest

from moejax.bench.process import PeerProcess
from moejax.bench.verdict import Judgement, judge


class Scores:
    """A reference that has scored already."""

    def __init__(self, gaps: list[list[float]]) -> None:
        self.gaps = gaps

    def score(self, prompts: list[list[int]], tokens: list[list[int]]) -> list[list[float]]:
        return self.gaps


@pytest.mark.parametrize(
    ("dtype", "gaps", "judgement"),
    [
        ("bfloat16", [[0.0] * 24, [0.0] * 24], "same tokens"),
        ("bfloat16", [[0.0] * 23 + [2.0]], "right up to rounding"),
        ("bfloat16", [[0.0] * 400 + [3.5]], "WRONG"),  # one token that no rounding explains
        ("bfloat16", [[0.2] * 24], "WRONG"),  # off throughout, nowhere by much
        ("bfloat16", [[0.0] * 24] * 15 + [[2.5] * 24], "WRONG"),  # one row of another prompt
        ("float16", [[0.0, math.nan]], "WRONG"),
        ("float32", [[0.0, 5e-4]], "right up to rounding"),
        ("float32", [[0.0, 2e-3]], "WRONG"),
    ],
)
def test_judgement(dtype: str, gaps: list[list[float]], judgement: Judgement) -> None:
    reference = cast(PeerProcess, Scores(gaps))
    prompts = [[place] for place in range(len(gaps))]
    verdict = judge(reference, prompts, [[2] * len(row) for row in gaps], dtype, {})
    assert verdict.judgement == judgement
    assert verdict.right == (judgement != "WRONG")
    assert verdict.rows == len(gaps)
