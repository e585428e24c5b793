"""How likely a token chooses each expert, by a law with a name: Zipf's, or one drawn from a Dirichlet. No JAX.

Experts are weighed, and a token chooses A different ones of them. The share of expert i, the probability that a token
chooses it, is min(1, c w_i) with the one c for which the shares of a layer add up to A. An expert is chosen once by a
token at most, so what would be above 1 is 1, and the others have the rest in proportion to their weights.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from moejax.planning.routing import Shares

LARGEST_EXPONENT = 10.0
CONCENTRATIONS = (0.05, 1000.0)  # below, some draws underflow to weights of 0; above, shares are even to 1%


@dataclass(frozen=True)
class Zipf:
    """w_i = 1 / rank^exponent. Every layer ranks the experts in an order of its own, drawn with the seed."""

    exponent: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.exponent <= LARGEST_EXPONENT:
            raise ValueError(f"Zipf's exponent must be above 0 and at most {LARGEST_EXPONENT:g}, got {self.exponent!r}")

    def shares(self, layers: int, num_experts: int, experts_per_token: int) -> tuple[Shares, ...]:
        """Of every expert of every layer; a layer's add up to `experts_per_token`."""
        weights = 1.0 / np.arange(1, num_experts + 1) ** self.exponent
        rng = np.random.default_rng([self.seed, num_experts])
        return tuple(capped_shares(weights[rng.permutation(num_experts)], experts_per_token) for _ in range(layers))


@dataclass(frozen=True)
class Dirichlet:
    """w is drawn, for every layer anew, from the symmetric Dirichlet distribution: the smaller the concentration, the
    fewer experts have most of the tokens; 1 makes every w equally likely.
    """

    concentration: float
    seed: int = 0

    def __post_init__(self) -> None:
        least, most = CONCENTRATIONS
        if not least <= self.concentration <= most:
            raise ValueError(
                f"a Dirichlet's concentration must be between {least:g} and {most:g}, got {self.concentration!r}"
            )

    def shares(self, layers: int, num_experts: int, experts_per_token: int) -> tuple[Shares, ...]:
        """Of every expert of every layer; a layer's add up to `experts_per_token`."""
        rng = np.random.default_rng([self.seed, num_experts])
        drawn = rng.dirichlet([self.concentration] * num_experts, size=layers)
        return tuple(capped_shares(weights, experts_per_token) for weights in drawn)


def capped_shares(weights: Float[np.ndarray, "E"], experts_per_token: int) -> Shares:
    """min(1, c w) with the c for which they add up to `experts_per_token`; at least so many weights are above 0."""
    shares = np.zeros(len(weights))
    sure = 0  # the heaviest experts, which every token chooses
    order = np.argsort(-weights, kind="stable")
    while sure < experts_per_token:
        rest = weights[order[sure:]]
        found = (experts_per_token - sure) * rest / rest.sum()
        if found[0] <= 1.0:
            shares[order[sure:]] = found
            break
        sure += 1
    shares[order[:sure]] = 1.0
    return tuple(shares.tolist())
