"""What routing makes of T tokens: experts that are read and rows that are computed on the busiest of the devices.

A token chooses A of E experts, tokens independently of each other; the experts lie on `parts` devices, neighbouring
ones together. What a device has on average is a closed form; by how much the busiest one exceeds that is the mean of
seeded samples. The standard error of a result is below 0.5% of it (docs/performance-model.md).
"""

import math
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from moejax.planning.loads import Balanced, PowerLaw

TOKENS = 2**18  # whose choices are drawn, of all layers together; 2,048 samples of LONGEST tokens
FEWEST = 2**12  # of one layer
LONGEST = 128  # tokens of a sample; more of them are put together from drawn samples
MOST_SAMPLES = 2**15  # of all layers together
FEWEST_LONG, MOST_LONG = 2**6, 2**11  # samples of more than LONGEST tokens, of all layers together
ORDERS = 2**20  # experts in all random orders together
LONG_RUN = 2**14  # tokens, after which a load counts as what it is in the long run
MOST_BUSIEST = 256  # samples of the busiest device's rows

Shares = tuple[float, ...]  # of a layer: the probability that a token chooses each expert; they sum to A


@dataclass(frozen=True)
class RoutingModel:
    """How tokens of a model choose their experts.

    shares: per layer, the probability that a token chooses each expert, summing to A; None where routing is uniform.
    seed: of the samples; the same one gives the same results everywhere.
    load: rows of each expert in place of tokens that choose, as benchmarks of layers have them.
    """

    num_experts: int
    experts_per_token: int
    shares: tuple[Shares, ...] | None = None
    seed: int = 0
    load: Balanced | PowerLaw | None = None

    def busiest(self, parts: int, tokens: int) -> Int[np.ndarray, "samples E_part"]:
        """Rows of each expert of the device that computes most, in samples of one layer."""
        return _busiest(self, parts, tokens)

    def experts_read(self, parts: int, tokens: int) -> float:
        """Distinct experts that the busiest device reads, expected, mean over layers."""
        each = -(-self.num_experts // parts)
        if self.load is not None:
            return float((self.busiest(parts, tokens) > 0).sum(axis=1).mean())
        if each == 1 or self.experts_per_token == self.num_experts:
            return float(each)
        mean = sum(sum(1 - (1 - share) ** tokens for share in layer) for layer in self._layers) / len(self._layers)
        if parts == 1:
            return mean
        if tokens == 1 and self.shares is None:
            return _one_token_read(self.num_experts, self.experts_per_token, parts)
        return min(float(each), mean / parts + self._excess(parts, tokens)[0])

    def busiest_rows(self, parts: int, tokens: int) -> float:
        """Rows (token and expert) that the busiest device computes, expected, mean over layers."""
        if self.load is not None:
            return float(self.busiest(parts, tokens).sum(axis=1).mean())
        if self.experts_per_token == self.num_experts:
            return float(tokens * -(-self.num_experts // parts))
        if tokens == 1:
            return self.experts_read(parts, 1)
        if parts == 1:
            return float(tokens * self.experts_per_token)
        return tokens * self.experts_per_token / parts + self._excess(parts, tokens)[1]

    def load_imbalance(self, parts: int) -> float:
        """Rows of the busiest device over the mean in the long run, mean over layers."""
        if self.load is not None:
            rows = self.busiest_rows(parts, LONG_RUN)
            return rows * parts / (LONG_RUN * self.experts_per_token)
        if self.shares is None:
            return 1.0
        busiest = _per_device(np.array(self.shares), parts).max(axis=-1)
        return float(busiest.mean()) * parts / self.experts_per_token

    @property
    def _layers(self) -> tuple[Shares, ...]:
        return self.shares or ((self.experts_per_token / self.num_experts,) * self.num_experts,)

    def _excess(self, parts: int, tokens: int) -> tuple[float, float]:
        return _excess(_Drawn(self._layers, self.experts_per_token, self.seed), parts, tokens)


def distinct_experts(num_experts: int, experts_per_token: int, tokens: int) -> float:
    """Distinct experts that `tokens` tokens choose under uniform routing: E (1 - (1 - A/E)^T)."""
    return num_experts * (1 - (1 - experts_per_token / num_experts) ** tokens)


def draw_choices(
    layers: tuple[Shares, ...], experts_per_token: int, tokens: int, rng: np.random.Generator
) -> Int[np.ndarray, "layers tokens A"]:
    """Experts that `tokens` tokens of each layer choose, A different ones each.

    Systematic sampling in random order (Hartley and Rao, Ann. Math. Stat. 33, 1962, 350-374): with the experts side by
    side, each as wide as its share, those at u, u + 1, ..., u + A - 1 for a random u below 1 are chosen. So each is
    chosen with exactly its share, and with equal shares every A experts are equally likely.
    """
    num_experts = len(layers[0])
    orders = min(tokens, max(LONGEST, ORDERS // num_experts // len(layers)))  # then they are used again
    order = rng.random((len(layers), orders, num_experts), np.float32).argsort(axis=2)
    ends = np.take_along_axis(np.array(layers)[:, None], order, axis=2).cumsum(axis=2)
    ends *= experts_per_token / ends[:, :, -1:]
    line = np.arange(len(layers) * orders).reshape(len(layers), orders, 1)  # one after the other: a single search
    flat = (ends + line * experts_per_token).reshape(-1)
    line = line[:, np.arange(tokens) % orders]
    at = (line * experts_per_token + rng.random((len(layers), tokens, 1))) + np.arange(experts_per_token)
    place = np.minimum(np.searchsorted(flat, at, side="right"), (line + 1) * num_experts - 1)
    return order.reshape(-1)[place]


class _Drawn(NamedTuple):
    """What random choices are drawn from: shares of each layer, experts per token, seed."""

    layers: tuple[Shares, ...]
    experts_per_token: int
    seed: int


@lru_cache(maxsize=8)
def _choices(drawn: _Drawn) -> Int[np.ndarray, "layers tokens A"]:
    tokens = max(FEWEST, TOKENS // len(drawn.layers))
    return draw_choices(drawn.layers, drawn.experts_per_token, tokens, np.random.default_rng(drawn.seed))


@lru_cache(maxsize=8)
def _samples(drawn: _Drawn, tokens: int) -> Int[np.ndarray, "layers samples E"]:
    """Rows of each expert in samples of so many tokens, at most LONGEST."""
    choices, num_experts = _choices(drawn), len(drawn.layers[0])
    samples = min(choices.shape[1] // tokens, MOST_SAMPLES // len(drawn.layers) + 1)
    used = choices[:, : samples * tokens].reshape(len(choices) * samples, -1)
    bins = used + np.arange(len(used))[:, None] * num_experts
    counts = np.bincount(bins.reshape(-1), minlength=len(used) * num_experts)
    return counts.astype(np.int32).reshape(len(choices), samples, num_experts)


@lru_cache(maxsize=8)
def _long_samples(
    drawn: _Drawn, tokens: int
) -> tuple[Float[np.ndarray, "layers samples E"], Bool[np.ndarray, "layers samples E"]]:
    """Rows of each expert, and whether it has any, in samples that are sums of shorter ones drawn with replacement.

    Their deviation from the mean of the shorter ones is added to the expected rows, so that what these happen to prefer
    is not multiplied. Around their own mean they deviate less than around the expected one: the factor `widened`.
    """
    times = -(-tokens // LONGEST)
    short = tokens // times
    counts = _samples(drawn, short).astype(np.float32)
    number = counts.shape[1]
    rng = np.random.default_rng([drawn.seed, tokens])
    samples = 1 + min(MOST_LONG, FEWEST_LONG + 8 * TOKENS // tokens) // len(counts)  # rows of more tokens differ less
    picks = rng.integers(number, size=(len(counts), samples, times))
    rows = counts[np.arange(len(counts))[:, None, None], picks].sum(axis=2)
    widened = math.sqrt(tokens / (times * short) * number / (number - 1))
    expected = tokens * np.array(drawn.layers)[:, None]
    return expected + (rows - times * counts.mean(axis=1, keepdims=True)) * widened, rows > 0


@lru_cache(maxsize=4096)
def _excess(drawn: _Drawn, parts: int, tokens: int) -> tuple[float, float]:
    """Experts read and rows computed, of the busiest device beyond the mean device."""
    if tokens <= LONGEST:
        rows = _samples(drawn, tokens)
        read = rows > 0
    else:
        rows, read = _long_samples(drawn, tokens)
    read, rows = _per_device(read, parts), _per_device(rows, parts)
    return float((read.max(-1) - read.mean(-1)).mean()), float((rows.max(-1) - rows.mean(-1)).mean())


@lru_cache(maxsize=4096)
def _busiest(routing: RoutingModel, parts: int, tokens: int) -> Int[np.ndarray, "samples E_part"]:
    experts, each = routing.num_experts, -(-routing.num_experts // parts)
    if routing.load is not None:
        rows = routing.load.rows(tokens, routing.experts_per_token, experts)
    else:
        drawn = _Drawn(routing._layers, routing.experts_per_token, routing.seed)
        counts = _samples(drawn, tokens) if tokens <= LONGEST else _long_samples(drawn, tokens)[0].clip(0)
        few = counts[:, : 1 + MOST_BUSIEST // len(counts)].reshape(-1, experts)
        rows = np.rint(few).astype(int)
    rows = np.pad(rows, ((0, 0), (0, parts * each - experts))).reshape(len(rows), parts, each)
    return rows[np.arange(len(rows)), rows.sum(axis=2).argmax(axis=1)]


def _per_device(of_experts: np.ndarray, parts: int) -> np.ndarray:
    """Sums over the experts of each device [..., E] -> [..., parts]; the last devices may have fewer, or none."""
    each = -(-of_experts.shape[-1] // parts)
    starts = range(0, of_experts.shape[-1], each)
    held = np.add.reduceat(of_experts, starts, axis=-1, dtype=np.result_type(of_experts, np.int32))
    return np.concatenate([held, np.zeros((*held.shape[:-1], parts - len(starts)), held.dtype)], axis=-1)


def _one_token_read(num_experts: int, experts_per_token: int, parts: int) -> float:
    """Experts that one token under uniform routing reads on the busiest device, exactly.

    That no device has more than c of them has as many ways as the A-th coefficient of the product over devices of
    sum_{j <= c} C(experts of it, j) x^j.
    """
    each, expected = -(-num_experts // parts), 0.0
    held = [max(0, min(each, num_experts - first)) for first in range(0, parts * each, each)]
    for most in range(min(each, experts_per_token)):  # E[max] = sum over c >= 0 of P(max > c)
        ways = reduce(
            lambda product, one: np.convolve(product, one)[: experts_per_token + 1],
            [[float(math.comb(count, j)) for j in range(min(count, most) + 1)] for count in held],
            np.ones(1),
        )
        found = float(ways[experts_per_token]) if len(ways) > experts_per_token else 0.0
        expected += 1.0 - found / math.comb(num_experts, experts_per_token)
    return expected
