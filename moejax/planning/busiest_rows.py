"""How many rows the busiest device computes: the expected largest of the devices' counts. Imports no JAX.

A token chooses two experts with odds w_i w_j. Its rows on the devices have the generating function S^2 - P, where
S = sum_g W_g x_g and P = sum_g Q_g x_g^2, with W_g the sum of the weights of device g's experts and Q_g that of their
squares; T tokens have (S^2 - P)^T. That is, but for a constant, the 2T-th moment of the normal variable
sum_g x_g (W_g z + i sqrt(Q_g) z_g), with z and all z_g independent and standard: given z, devices are independent. So

    P(no device has more than m rows) ~ integral dz e^(-z^2 / 2) [u^N] prod_g sum_{n <= m} H_{g,n}(z) u^n / n!

with N = 2T rows in all and sum_n H_{g,n}(z) u^n / n! = exp(W_g z u - Q_g u^2 / 2). All Q_g = 0 is one expert per token:
independent Poisson counts, given their sum (Levin, Annals of Statistics 9 (1981) 1123-1126). docs/performance-model.md.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

REACH = 4.6  # of z, beyond its peak at sqrt(N): the integrand falls as e^(-(z - sqrt(N))^2) there
DIGITS = 25.0  # e^-25 is what sums in steps may be off
CERTAIN = 1 - 1e-10  # probability from which on no further rows are counted
ROUNDING, TOLERATED = 1e-16, 1e-6  # relative, of one term and of the result


@lru_cache(maxsize=4096)
def expected_largest(devices: tuple[tuple[float, float], ...], rows: int) -> float | None:
    """The expected number of rows on the busiest device, of `rows` in all; None where rounding would spoil it, which
    needs an expert that nearly every token chooses.

    devices: W and Q of each device's experts, where the weights of all experts add up to 1.

    The coefficient of u^N is a sum over a circle (Abate and Whitt, Operations Research Letters 12 (1992) 245-251), for
    each z through the point where the integrand is largest, so that little cancels: the root of q u^2 - z u + N.
    """
    kinds = Counter(devices)
    z, u = _nodes(sum(q for _, q in devices), rows)
    around = 2 * math.pi * np.arange(8 * math.isqrt(rows) + 17) / (16 * math.isqrt(rows) + 32)
    circle = np.abs(u)[:, None] * np.exp(1j * around)  # its upper half; the lower one is the conjugate
    turned = np.exp(-1j * rows * around)
    turned[1:-1] *= 2

    # Per kind of device, times e^-scale: the terms n = 0 of its sum, and the whole sum.
    weight, square = (np.array(one)[:, None] for one in zip(*kinds, strict=True))
    count = np.array(list(kinds.values()))
    scale = (u * weight * z - u**2 * square / 2).real
    linear, quadratic = (weight * z)[..., None] * circle, square[..., None] * circle**2
    terms = np.exp(-scale)[..., None] + 0 * circle
    whole = np.exp(linear - quadratic / 2 - scale[..., None])
    height = -(z**2) / 2 - rows * np.log(np.abs(u)) + count @ scale
    height = np.exp(height - height.max())

    largest_terms = 0.0

    def probability(sums: np.ndarray) -> float:
        nonlocal largest_terms
        parts = np.prod(sums ** count[:, None, None], axis=0) * turned
        largest_terms = max(largest_terms, float(height @ np.abs(parts).sum(axis=1)))
        return float(height @ parts.real.sum(axis=1))

    everything = probability(whole)
    before, sums, expected = 0 * terms, terms, 0.0
    for most in range(rows):  # E[largest] = sum over m >= 0 of P(largest > m)
        if most * len(devices) < rows:
            expected += 1.0
        elif (at_most := probability(sums) / everything) < CERTAIN:
            expected += 1.0 - at_most
        else:
            break
        before, terms = terms, (linear * terms - quadratic * before) / (most + 1)  # Hermite's recurrence
        sums = sums + terms
    return expected if largest_terms * ROUNDING < TOLERATED * abs(everything) else None


def _nodes(q: float, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of z to sum over, and for each the u at which its part is largest; q is the sum of all squares.

    A sum in steps is off by the integrand's Fourier transform at multiples of 2 pi / step. Relative to its value at 0,
    the integral, that is at most e^(-w^2 (1/2 - 1 / (4 (1 - q)))), and beyond w = sqrt(N) at most
    (1 - q)^(-N / 2) e^(-(w - sqrt(N))^2).
    """
    peak = math.sqrt(rows)
    if q == 0:  # z only scales the result
        return np.array([peak]), np.array([peak])
    far = peak + math.sqrt(DIGITS - rows / 2 * math.log(1 - q))
    if (fall := 0.5 - 0.25 / (1 - q)) > 0:
        far = min(far, math.sqrt(DIGITS / fall))
    step = 2 * math.pi / far
    low = 0.0 if q > 0.25 else max(0.0, peak - REACH)  # above, the integrand oscillates from 0 to 2 sqrt(q N)
    high = max(peak, 2 * math.sqrt(q * rows)) + REACH
    z = step * (np.arange(math.floor(low / step), math.ceil(high / step)) + 0.5)
    return z, (z - np.sqrt((z**2 - 4 * q * rows).astype(complex))) / (2 * q)


def largest_of_normals(means: Sequence[float], deviations: Sequence[float]) -> float:
    """The expected largest of independent normal variables: the integral of 1 - F above the least, minus F below."""
    low = min(m - 9 * d for m, d in zip(means, deviations, strict=True))
    high = max(m + 9 * d for m, d in zip(means, deviations, strict=True))
    if high - low < 1e-12:
        return max(means)
    steps = 400
    width, total = (high - low) / steps, low
    kinds = Counter(zip(means, deviations, strict=True))
    for step in range(steps):
        x = low + (step + 0.5) * width
        total += width * (1 - math.prod(_normal_cdf(x, m, d) ** count for (m, d), count in kinds.items()))
    return total


def _normal_cdf(x: float, mean: float, deviation: float) -> float:
    return float(x >= mean) if deviation == 0 else 0.5 * math.erfc((mean - x) / deviation / math.sqrt(2))
