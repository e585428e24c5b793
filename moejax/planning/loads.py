"""Rows per expert that benchmarks of layers give their kernels: balanced ones, and power laws. Imports no JAX.

Both are what the tables behind the hardware files were measured under (docs/performance-model.md#loads), so that a
prediction and a measurement are of the same rows.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

SAMPLES = 64  # of a power law; a mean over them is within 4% for 8 experts
LARGEST_SHARE = 0.8  # of the tokens, that the power law reaches up to, before it is scaled to the rows there are
LARGEST_POWER = 10.0
FEW = (0.01, 2.0)  # what it spans where there are fewer rows than experts


@dataclass(frozen=True)
class Balanced:
    """Every expert has as many rows as the others, or one more."""

    def rows(self, tokens: int, experts_per_token: int, num_experts: int) -> Int[np.ndarray, "1 E"]:
        """Rows of each expert: token i takes experts i, i + stride, ..., spread out where tokens are few."""
        stride = -(-num_experts // experts_per_token)
        step = 1.0 if tokens >= stride else stride / tokens
        first = np.arange(tokens)[:, None] * step + np.arange(experts_per_token) * stride
        return np.bincount((first % num_experts).astype(int).ravel(), minlength=num_experts)[None]


@dataclass(frozen=True)
class PowerLaw:
    """Shares of the experts are drawn from a density proportional to x^-alpha; every layer draws its own.

    alpha: above 0; 1.01 and 1.2 are what was measured.  seed: of the samples.
    """

    alpha: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= LARGEST_POWER:
            raise ValueError(
                f"a power law's exponent must be above 0 and at most {LARGEST_POWER:g}, got {self.alpha!r}"
            )

    def rows(self, tokens: int, experts_per_token: int, num_experts: int) -> Int[np.ndarray, "samples E"]:
        """Rows of each expert in samples, no expert with more rows than there are tokens."""
        total = tokens * experts_per_token
        low, high = (1.0, max(1.0 + 1e-9, LARGEST_SHARE * tokens)) if total > num_experts else FEW
        drawn = np.random.default_rng([self.seed, tokens, num_experts]).random((SAMPLES, num_experts))
        if math.isclose(self.alpha, 1.0):
            size = low * (high / low) ** drawn
        else:
            power = 1 - self.alpha
            size = ((high**power - low**power) * drawn + low**power) ** (1 / power)
        rows = np.rint(size / size.sum(axis=1, keepdims=True) * total).astype(int)
        return np.stack([_settled(one, tokens, total) for one in rows])


def _settled(rows: Int[np.ndarray, "E"], most: int, total: int) -> Int[np.ndarray, "E"]:
    """The same with no more than `most` rows each and `total` in all: the fewest get what lacks, the most lose it."""
    rows = np.minimum(rows, most)
    missing = total - int(rows.sum())
    return _filled(rows, missing) if missing >= 0 else most - _filled(most - rows, -missing)


def _filled(rows: Int[np.ndarray, "E"], missing: int) -> Int[np.ndarray, "E"]:
    """`missing` more rows, one by one to whichever has the fewest."""
    order = np.argsort(rows, kind="stable")
    held = rows[order]
    steps = np.diff(held) * np.arange(1, len(held))  # rows that level the first i with the next one
    levelled = int(np.searchsorted(np.cumsum(steps), missing, side="right")) + 1
    level, rest = divmod(int(held[:levelled].sum()) + missing, levelled)
    held[:levelled] = level + (np.arange(levelled) < rest)
    filled = np.empty_like(held)
    filled[order] = held
    return filled
