"""What routing makes of T tokens: experts that are read, rows that are computed, on the busiest of the devices.

A token chooses A of E experts; tokens choose independently. Uniform routing: every A experts are equally likely.
A recorded load: as likely as the maximum-entropy distribution over sets of A experts under which each expert is chosen
as often as was recorded (conditional Poisson sampling; Chen, Dempster and Liu, Biometrika 81 (1994) 457-469).
The E experts lie on `parts` devices, E / parts neighbouring ones on each. docs/performance-model.md derives all of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

MOST_LISTED = 12  # experts up to which all 2^E sets of them are listed
MOST_COUNTED = 100  # rows on a device up to which their distribution is computed; above, they are taken as normal

Weights = tuple[float, ...]  # of a layer's experts; the odds of a set of A are the products of its members' weights


@dataclass(frozen=True)
class Routing:
    """How tokens of a model choose their experts.

    shares: per layer, the probability that a token chooses each expert, summing to A; None where routing is uniform.
    """

    num_experts: int
    experts_per_token: int
    shares: tuple[tuple[float, ...], ...] | None = None

    def experts_read(self, parts: int, tokens: int) -> float:
        """Distinct experts that the busiest device reads, expected, mean over layers."""
        if self.shares is None:
            return uniform_busiest_read(self.num_experts, self.experts_per_token, parts, tokens)
        read = [busiest_read(layer, self.experts_per_token, parts, tokens) for layer in self.shares]
        return sum(read) / len(read)

    def busiest_rows(self, parts: int, tokens: int) -> float:
        """Rows (token and expert) that the busiest device computes, expected, mean over layers."""
        if self.shares is None:
            return _layer_rows(None, self.num_experts, self.experts_per_token, parts, tokens)
        rows = [_layer_rows(layer, self.num_experts, self.experts_per_token, parts, tokens) for layer in self.shares]
        return sum(rows) / len(rows)

    def load_imbalance(self, parts: int) -> float:
        """Rows of the busiest device over the mean in the long run, mean over layers."""
        if self.shares is None:
            return 1.0
        mean = self.experts_per_token / parts
        return sum(max(_per_device(layer, parts)) for layer in self.shares) / len(self.shares) / mean


def distinct_experts(num_experts: int, experts_per_token: int, tokens: int) -> float:
    """Distinct experts that `tokens` tokens choose under uniform routing: E (1 - (1 - A/E)^T)."""
    return num_experts * (1 - (1 - experts_per_token / num_experts) ** tokens)


@lru_cache(maxsize=4096)
def uniform_busiest_read(num_experts: int, experts_per_token: int, parts: int, tokens: int) -> float:
    """Distinct experts on the busiest device under uniform routing, expected, exactly.

    All sets of n experts are equally likely to be the ones chosen. How likely is n: by inclusion and exclusion, from
    the probability (C(m, A) / C(E, A))^T that all tokens stay within m given experts. Of n chosen, no device has more
    than c in as many ways as the n-th coefficient of (sum_{j <= c} C(E/parts, j) x^j)^parts, out of C(E, n).
    """
    each, most = num_experts // parts, min(num_experts, experts_per_token * tokens)
    number = _number_chosen(num_experts, experts_per_token, tokens)
    expected = 0.0
    for largest in range(each):  # E[max] = sum over c >= 0 of P(max > c)
        ways = _power([math.comb(each, j) for j in range(largest + 1)], parts)
        at_most = sum(
            number[n] * (ways[n] / math.comb(num_experts, n) if n < len(ways) else 0.0) for n in range(most + 1)
        )
        expected += 1.0 - at_most
    return expected


def busiest_read(shares: tuple[float, ...], experts_per_token: int, parts: int, tokens: int) -> float:
    """Distinct experts on the busiest device where a token chooses expert i with probability `shares[i]`.

    Exact for the maximum-entropy distribution, over all sets of experts, up to MOST_LISTED of them. Beyond, experts are
    taken to be read independently of each other, each as likely as it is: 1 - (1 - share)^T.
    """
    if len(shares) <= MOST_LISTED:
        return _listed_read(shares, experts_per_token, parts, tokens)
    read = [1 - (1 - share) ** tokens for share in shares]
    each = len(shares) // parts
    expected, below = 0.0, [_poisson_binomial(read[i * each : (i + 1) * each]) for i in range(parts)]
    for largest in range(each):
        expected += 1.0 - math.prod(sum(device[: largest + 1]) for device in below)
    return expected


@lru_cache(maxsize=4096)
def _listed_read(shares: tuple[float, ...], experts_per_token: int, parts: int, tokens: int) -> float:
    import numpy as np

    weights = inclusion_weights(shares, experts_per_token)
    members = np.arange(2 ** len(shares))[:, None] >> np.arange(len(shares))[None, :] & 1
    within = _symmetric_sums(weights, experts_per_token) ** tokens  # that all tokens stay within each set
    exactly = within.copy()
    for expert in range(len(shares)):  # Moebius inversion: that the experts read are exactly this set
        halves = exactly.reshape(-1, 2, 2**expert)
        halves[:, 1] -= halves[:, 0]
    busiest = members.reshape(-1, parts, len(shares) // parts).sum(axis=2).max(axis=1)
    return float(exactly @ busiest)


@lru_cache(maxsize=4096)
def inclusion_weights(shares: tuple[float, ...], experts_per_token: int) -> Weights:
    """Weights under which a set of A experts, drawn with odds that are their product, has each with its share.

    By the iteration w_i <- share_i / (probability of i / w_i), which converges to the unique solution.
    """
    floor, ceiling = 1e-9, 1 - 1e-9  # an expert never or always chosen: no finite weight has it so
    wanted = [min(ceiling, max(floor, share)) for share in shares]
    scale = experts_per_token / sum(wanted)
    wanted = [min(ceiling, share * scale) for share in wanted]
    weights = [share / (1 - share) for share in wanted]
    for _ in range(1000):
        total = _elementary(weights, experts_per_token)
        without = [_elementary(weights[:i] + weights[i + 1 :], experts_per_token - 1) for i in range(len(weights))]
        found = [w * rest / total for w, rest in zip(weights, without, strict=True)]
        weights = [w * share / now for w, share, now in zip(weights, wanted, found, strict=True)]
        if max(abs(share - now) for share, now in zip(wanted, found, strict=True)) < 1e-10:
            break
    return tuple(weights)


@lru_cache(maxsize=4096)
def _layer_rows(
    shares: tuple[float, ...] | None, num_experts: int, experts_per_token: int, parts: int, tokens: int
) -> float:
    """Rows on the busiest device: exact for one or two experts per token (`busiest_rows`).

    For more, those of as many pairs with the same means, variances and covariances; one token's are the experts
    that it reads. Devices with many rows, and a load in which nearly every token chooses the same expert: as normal
    variables, with a device's mean T s, s the sum of its shares, and the variance T s (1 - s / A) (E - A) / (E - 1) of
    a hypergeometric count. Rows of devices add up to T A, so they vary against each other: taken out of that sum,
    independent variables have parts / (parts - 1) times the variance.
    """
    if parts == 1 or experts_per_token == num_experts:
        return tokens * experts_per_token / parts
    if tokens == 1 and experts_per_token > 2:
        if shares is None:
            return uniform_busiest_read(num_experts, experts_per_token, parts, 1)
        return busiest_read(shares, experts_per_token, parts, 1)
    from moejax.planning.busiest_rows import expected_largest, largest_of_normals  # here, because it imports numpy

    device = _per_device(shares, parts) if shares else [experts_per_token / parts] * parts
    if tokens * max(device) <= MOST_COUNTED:
        weights = _device_weights(shares, num_experts, experts_per_token, parts)
        most = tokens * min(experts_per_token, num_experts // parts)
        if (exact := expected_largest(weights, tokens * experts_per_token)) is not None:
            return min(float(most), exact)
    spread = (num_experts - experts_per_token) / (num_experts - 1) * parts / (parts - 1)
    means = [tokens * share for share in device]
    deviations = [
        math.sqrt(max(0.0, mean * (1 - share / experts_per_token)) * spread)
        for mean, share in zip(means, device, strict=True)
    ]
    return largest_of_normals(means, deviations)


def _device_weights(
    shares: tuple[float, ...] | None, num_experts: int, experts_per_token: int, parts: int
) -> tuple[tuple[float, float], ...]:
    """For each device, the sum of its experts' weights, and of their squares, where all weights add up to 1."""
    if experts_per_token == 2:
        weights = inclusion_weights(shares, 2) if shares else (1.0,) * num_experts
        total = sum(weights)
        squares = _per_device([(weight / total) ** 2 for weight in weights], parts)
        return tuple(zip(_per_device([weight / total for weight in weights], parts), squares, strict=True))
    # q is the sum of squares that gives pairs the spread (E - A) / (E - 1) of A experts: 1 / E' with E' equal experts,
    # (E' - 2) / (E' - 1) = (E - A) / (E - 1). One expert per token: 0.
    spread = (num_experts - experts_per_token) / (num_experts - 1)
    q = (1 - spread) / (2 - spread)
    device = _per_device(shares, parts) if shares else [experts_per_token / parts] * parts
    return tuple((share / experts_per_token, q * share / experts_per_token) for share in device)


@lru_cache(maxsize=4096)
def _number_chosen(num_experts: int, experts_per_token: int, tokens: int) -> list[float]:
    """Probability that T tokens choose exactly n distinct experts, for n from 0 to E.

    Step by step over tokens where they are few (sums of alternating signs lose digits), else the limit: all experts.
    """
    every = math.comb(num_experts, experts_per_token)
    now = [1.0] + [0.0] * num_experts
    for _ in range(tokens):
        after = [0.0] * (num_experts + 1)
        for n, probability in enumerate(now):
            if probability < 1e-300:
                continue
            for new in range(min(experts_per_token, num_experts - n) + 1):
                ways = math.comb(num_experts - n, new) * math.comb(n, experts_per_token - new)
                after[n + new] += probability * ways / every
        now = after
        if 1.0 - now[num_experts] < 1e-15:
            break
    return now


def _power(polynomial: list[int], exponent: int) -> list[int]:
    result = [1]
    for _ in range(exponent):
        product = [0] * (len(result) + len(polynomial) - 1)
        for i, a in enumerate(result):
            for j, b in enumerate(polynomial):
                product[i + j] += a * b
        result = product
    return result


def _elementary(weights: Sequence[float], degree: int) -> float:
    """The elementary symmetric polynomial of this degree."""
    sums = [1.0] + [0.0] * degree
    for weight in weights:
        for k in range(degree, 0, -1):
            sums[k] += weight * sums[k - 1]
    return sums[degree]


def _symmetric_sums(weights: Weights, degree: int):  # -> float64 [2^E]
    """For each set of experts, the probability that a token's A experts are all in it."""
    import numpy as np

    sums = np.zeros((degree + 1, 1))
    sums[0] = 1.0
    for weight in weights:  # the sets that have this expert follow those that do not
        having = sums.copy()
        having[1:] += weight * sums[:-1]
        sums = np.concatenate([sums, having], axis=1)
    return sums[degree] / sums[degree, -1]


def _poisson_binomial(probabilities: Sequence[float]) -> list[float]:
    """How likely each number of successes of independent trials is."""
    counts = [1.0]
    for p in probabilities:
        counts = [
            (counts[i] * (1 - p) if i < len(counts) else 0.0) + (counts[i - 1] * p if i else 0.0)
            for i in range(len(counts) + 1)
        ]
    return counts


def _per_device(shares: Sequence[float], parts: int) -> list[float]:
    each = len(shares) // parts
    return [sum(shares[i * each : (i + 1) * each]) for i in range(parts)]
