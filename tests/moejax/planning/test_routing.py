"""Expectations under routing: closed forms against every possible choice, and against simulation."""

import random
from itertools import combinations, product

import numpy as np
import pytest

from moejax.planning.routing import (
    MOST_COUNTED,
    MOST_LISTED,
    Routing,
    busiest_read,
    distinct_experts,
    inclusion_weights,
    uniform_busiest_read,
)

# (E, A, devices, tokens), small enough to list every choice
SMALL = [(8, 2, 1, 2), (8, 2, 2, 2), (8, 2, 4, 1), (8, 2, 4, 3), (8, 2, 8, 3), (4, 1, 2, 5), (6, 3, 3, 3), (4, 4, 2, 2)]
SMALL += [(3, 2, 3, 4), (4, 2, 2, 4), (8, 4, 8, 2)]
# (devices, tokens) with E = 8, A = 2; the last two lie on both sides of MOST_COUNTED rows
SIMULATED = [(2, 2), (2, 32), (4, 4), (4, 32), (8, 2), (8, 16), (8, 64), (8, 400), (8, 401)]
PAIRS = list(combinations(range(8), 2))


def enumerated(experts: int, per_token: int, parts: int, tokens: int) -> tuple[float, float, float]:
    """Distinct experts, those of the busiest device, its rows: means over every choice of every token."""
    each, sums, count = experts // parts, [0, 0, 0], 0
    for choice in product(list(combinations(range(experts), per_token)), repeat=tokens):
        rows = [0] * parts
        read = [set[int]() for _ in range(parts)]
        for expert in (one for token in choice for one in token):
            rows[expert // each] += 1
            read[expert // each].add(expert)
        sums = [a + b for a, b in zip(sums, (sum(map(len, read)), max(map(len, read)), max(rows)), strict=True)]
        count += 1
    return sums[0] / count, sums[1] / count, sums[2] / count


@pytest.mark.parametrize(("experts", "per_token", "parts", "tokens"), SMALL)
def test_uniform_routing_is_exact(experts: int, per_token: int, parts: int, tokens: int) -> None:
    distinct, busiest, rows = enumerated(experts, per_token, parts, tokens)
    assert distinct_experts(experts, per_token, tokens) == pytest.approx(distinct, rel=1e-12)
    assert uniform_busiest_read(experts, per_token, parts, tokens) == pytest.approx(busiest, rel=1e-12)
    even = (per_token / experts,) * experts
    assert busiest_read(even, per_token, parts, tokens) == pytest.approx(busiest, rel=1e-6)
    within = 1e-7 if per_token <= 2 else 0.03  # more than two per token are approximated by pairs
    assert Routing(experts, per_token).busiest_rows(parts, tokens) == pytest.approx(rows, rel=within)


def test_one_token_on_the_devices_of_the_arithmetic() -> None:
    """FACTS: expert about 1.43, 1.14, 1.0 experts per layer and device at 2, 4, 8 devices; 2 on one."""
    found = [uniform_busiest_read(8, 2, parts, 1) for parts in (1, 2, 4, 8)]
    assert found == pytest.approx([2, 10 / 7, 8 / 7, 1], rel=1e-12)


def simulated_rows(odds: list[float], parts: int, tokens: int) -> tuple[float, float]:
    """Rows of the busiest device when tokens choose pairs of 8 experts with these odds: mean, its standard error."""
    per_device = np.zeros((len(PAIRS), parts))
    for number, pair in enumerate(PAIRS):
        for expert in pair:
            per_device[number, expert * parts // 8] += 1
    chosen = np.random.default_rng([parts, tokens]).multinomial(tokens, np.array(odds) / sum(odds), size=20_000)
    rows = (chosen @ per_device).max(axis=1)
    return rows.mean(), rows.std() / len(rows) ** 0.5


@pytest.mark.parametrize(("parts", "tokens"), SIMULATED)
def test_rows_of_the_busiest_device_against_simulation(parts: int, tokens: int) -> None:
    mean, error = simulated_rows([1.0] * len(PAIRS), parts, tokens)
    normal = 0.003 * mean if 2 * tokens > MOST_COUNTED * parts else 0.0
    assert Routing(8, 2).busiest_rows(parts, tokens) == pytest.approx(mean, abs=4 * error + normal)


@pytest.mark.parametrize("hottest", [0.3, 0.55, 0.8, 0.9, 0.99])
@pytest.mark.parametrize(("parts", "tokens"), [(2, 2), (4, 8), (8, 1), (2, 16), (8, 60)])
def test_rows_of_a_recorded_load_against_simulation(hottest: float, parts: int, tokens: int) -> None:
    """The hottest expert is chosen by such a share of tokens; at 0.99 eight rows or more are taken as normal."""
    shares = (hottest, *((2 - hottest) * weight / 28 for weight in range(1, 8)))
    weights = inclusion_weights(shares, 2)
    mean, error = simulated_rows([weights[a] * weights[b] for a, b in PAIRS], parts, tokens)
    normal = 0.015 * mean if hottest == 0.99 and tokens >= 8 else 1e-6
    assert Routing(8, 2, (shares, shares)).busiest_rows(parts, tokens) == pytest.approx(mean, abs=4 * error + normal)


@pytest.mark.parametrize(("experts", "per_token", "parts", "tokens"), [(16, 4, 8, 2), (16, 4, 4, 16), (8, 3, 4, 8)])
def test_more_experts_per_token_are_close_to_simulation(experts: int, per_token: int, parts: int, tokens: int) -> None:
    draws = np.random.default_rng(0).random((4000, tokens, experts)).argpartition(per_token, axis=2)
    device = draws[:, :, :per_token] * parts // experts
    rows = np.stack([(device == part).sum(axis=(1, 2)) for part in range(parts)]).max(axis=0)
    assert Routing(experts, per_token).busiest_rows(parts, tokens) == pytest.approx(rows.mean(), rel=0.02)


def skewed(experts: int, per_token: int) -> tuple[float, ...]:
    weights = [1.0 / (1 + i) for i in range(experts)]
    return tuple(inclusion(weights, per_token))


def inclusion(weights: list[float], per_token: int) -> list[float]:
    """How likely a set of experts, drawn with odds that are the product of its weights, has each of them."""
    odds = {}
    for chosen in combinations(range(len(weights)), per_token):
        odds[chosen] = 1.0
        for expert in chosen:
            odds[chosen] *= weights[expert]
    total = sum(odds.values())
    return [sum(p for chosen, p in odds.items() if i in chosen) / total for i in range(len(weights))]


@pytest.mark.parametrize(("experts", "per_token"), [(8, 2), (6, 3), (4, 1)])
def test_weights_give_each_expert_its_recorded_share(experts: int, per_token: int) -> None:
    shares = skewed(experts, per_token)
    assert sum(shares) == pytest.approx(per_token)
    assert inclusion(list(inclusion_weights(shares, per_token)), per_token) == pytest.approx(shares, rel=1e-8)


@pytest.mark.parametrize("tokens", [1, 2, 8])
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_a_recorded_load_against_simulation(parts: int, tokens: int) -> None:
    shares = skewed(8, 2)
    weights = inclusion_weights(shares, 2)
    sets = list(combinations(range(8), 2))
    odds = [weights[a] * weights[b] for a, b in sets]
    rng, times, total = random.Random(tokens), 4000, 0
    for _ in range(times):
        read = {expert for pair in rng.choices(sets, odds, k=tokens) for expert in pair}
        total += max(sum(expert // (8 // parts) == part for expert in read) for part in range(parts))
    assert busiest_read(shares, 2, parts, tokens) == pytest.approx(total / times, rel=0.03)


def test_many_experts_are_taken_as_independent() -> None:
    """Above MOST_LISTED experts: close to the exact value under uniform routing, for more than a few tokens."""
    experts = 2 * MOST_LISTED
    even = (2 / experts,) * experts
    for tokens in (8, 32):
        assert busiest_read(even, 2, 4, tokens) == pytest.approx(uniform_busiest_read(experts, 2, 4, tokens), rel=0.1)


def test_imbalance_of_a_recorded_load() -> None:
    layers = ((1.0, 0.5, 0.25, 0.25), (0.5, 0.5, 0.5, 0.5))
    routing = Routing(4, 2, layers)
    assert routing.load_imbalance(2) == pytest.approx((1.5 / 1.0 + 1.0) / 2)
    assert routing.load_imbalance(1) == 1 and Routing(4, 2).load_imbalance(4) == 1
    assert routing.busiest_rows(2, 4096) / 4096 == pytest.approx((1.5 + 1.0) / 2, rel=0.01)
    assert routing.experts_read(4, 1) > 0 and routing.experts_read(1, 1) == pytest.approx(2)
