"""moejax against what transformers computed for committed tiny checkpoints: no torch, every expert backend.

scripts/make_golden.py made the files; its docstring says what golden.npz holds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moejax

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("grouped_query", "sliding_window", "tied_head_dim", "top1", "top4_of_16")
BACKENDS = ("dense", "blocked", "ragged")

# Largest difference of a float32 logit from transformers'. The logits have a deviation of 3, and transformers' own
# differ by up to 3e-5 between float32 and float64, between eager and sdpa attention by 2e-5.
LOGITS_ATOL = 2e-4


@dataclass(frozen=True, kw_only=True)
class Case:
    """One checkpoint loaded for one backend, and what transformers computed for it."""

    model: moejax.Model
    prompts: list[list[int]]
    greedy: np.ndarray  # int32 [prompts, G]
    logits: list[np.ndarray]  # float32 [T + G - 1, V] each
    logit_gap: float
    router_gap: float


@pytest.fixture(scope="module", params=[f"{name}-{backend}" for name in NAMES for backend in BACKENDS])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    name, _, backend = request.param.partition("-")
    with np.load(GOLDEN / name / "golden.npz", allow_pickle=False) as golden:
        arrays: dict[str, Any] = dict(golden)
    count = len(arrays["greedy"])
    yield Case(
        model=moejax.load(str(GOLDEN / name), dtype="float32", expert_backend=backend),
        prompts=[arrays[f"prompt_{i}"].tolist() for i in range(count)],
        greedy=arrays["greedy"],
        logits=[arrays[f"logits_{i}"] for i in range(count)],
        logit_gap=float(arrays["logit_gap"]),
        router_gap=float(arrays["router_gap"]),
    )


def test_logits_equal_transformers(case: Case) -> None:
    rows = [prompt + tokens[:-1].tolist() for prompt, tokens in zip(case.prompts, case.greedy, strict=True)]
    for got, expected in zip(moejax.logits(case.model, rows), case.logits, strict=True):
        assert got.dtype == np.float32
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=LOGITS_ATOL)


def test_greedy_tokens_equal_transformers(case: Case) -> None:
    results = moejax.decode(case.model, case.prompts, max_tokens=case.greedy.shape[1])
    for result, tokens in zip(results, case.greedy, strict=True):
        assert result.token_ids == tokens.tolist()
        assert result.finish_reason == "length"


def test_golden_choices_are_not_near_ties(case: Case) -> None:
    """Identical tokens may be demanded only where rounding cannot decide."""
    assert case.greedy.shape == (3, 64)
    assert case.logit_gap >= 2 * LOGITS_ATOL
    assert case.router_gap >= 1e-4
