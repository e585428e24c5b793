"""Sampled expectations under routing: against every possible choice, and against another simulation."""

from itertools import combinations, pairwise, permutations, product

import numpy as np
import pytest

from moejax.planning.routing import LONGEST, RoutingModel, distinct_experts, draw_choices
from scripts.routing_error import standard_error

STATED = 0.005  # the standard error that docs/performance-model.md states
CLOSE = 0.012  # of exact results: more than twice that
EXACT = 1e-12

# (E, A, devices, tokens), small enough to list every choice; in the last, devices have 2, 2, 2 and 0 experts
SMALL = [(8, 2, 1, 2), (8, 2, 2, 2), (8, 2, 4, 1), (8, 2, 4, 3), (8, 2, 8, 3), (4, 1, 2, 5), (6, 3, 3, 3), (4, 4, 2, 2)]
SMALL += [(3, 2, 3, 4), (4, 2, 2, 4), (8, 4, 8, 2), (8, 4, 2, 1), (6, 2, 4, 2), (6, 2, 4, 1)]
SKEWED = (0.9, 0.6, 0.3, 0.2)  # A = 2
PAIRS = list(combinations(range(8), 2))


def enumerated(odds: dict[tuple[int, ...], float], experts: int, parts: int, tokens: int) -> list[float]:
    """Distinct experts, those of the busiest device, its rows: means over every choice of every token."""
    each, sums = -(-experts // parts), np.zeros(3)
    for choice in product(odds, repeat=tokens):
        rows = np.bincount([expert // each for token in choice for expert in token], minlength=parts)
        read = set().union(*choice)
        busiest = np.bincount([expert // each for expert in read], minlength=parts).max()
        sums += np.prod([odds[token] for token in choice]) * np.array([len(read), busiest, rows.max()])
    return sums.tolist()


def uniform_odds(experts: int, per_token: int) -> dict[tuple[int, ...], float]:
    chosen = list(combinations(range(experts), per_token))
    return dict.fromkeys(chosen, 1 / len(chosen))


def systematic_odds(shares: tuple[float, ...]) -> dict[tuple[int, ...], float]:
    """How likely systematic sampling in random order draws each set of experts."""
    orders = list(permutations(range(len(shares))))
    odds: dict[tuple[int, ...], float] = {}
    for order in orders:
        ends = np.cumsum([shares[expert] for expert in order])
        for low, high in pairwise(sorted({0.0, 1.0, *np.round(ends % 1, 12)})):
            points = (low + high) / 2 + np.arange(round(sum(shares)))
            chosen = tuple(sorted(order[place] for place in np.searchsorted(ends, points)))
            odds[chosen] = odds.get(chosen, 0.0) + (high - low) / len(orders)
    return odds


@pytest.mark.parametrize(("experts", "per_token", "parts", "tokens"), SMALL)
def test_uniform_routing_against_every_choice(experts: int, per_token: int, parts: int, tokens: int) -> None:
    distinct, busiest, rows = enumerated(uniform_odds(experts, per_token), experts, parts, tokens)
    model = RoutingModel(experts, per_token)
    exact = parts == 1 or tokens == 1 or per_token == experts
    assert distinct_experts(experts, per_token, tokens) == pytest.approx(distinct, rel=EXACT)
    assert model.experts_read(parts, tokens) == pytest.approx(busiest, rel=EXACT if exact else CLOSE)
    assert model.busiest_rows(parts, tokens) == pytest.approx(rows, rel=EXACT if exact else CLOSE)


@pytest.mark.parametrize("tokens", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("shares", [SKEWED, (0.55, 0.3, 0.1, 0.05), (1.0, 0.5, 0.3, 0.2)], ids=["two", "one", "always"])
def test_a_recorded_load_against_every_choice(shares: tuple[float, ...], parts: int, tokens: int) -> None:
    odds = systematic_odds(shares)
    for expert, share in enumerate(shares):
        assert sum(each for chosen, each in odds.items() if expert in chosen) == pytest.approx(share)
    _, busiest, rows = enumerated(odds, len(shares), parts, tokens)
    model = RoutingModel(len(shares), round(sum(shares)), (shares, shares))
    within = EXACT if parts == 1 else CLOSE
    assert model.experts_read(parts, tokens) == pytest.approx(busiest, rel=within)
    assert model.busiest_rows(parts, tokens) == pytest.approx(rows, rel=within)


def test_one_token_on_the_devices_of_the_arithmetic() -> None:
    """Expert about 1.43, 1.14, 1.0 experts per layer and device at 2, 4, 8 devices; 2 on one."""
    model = RoutingModel(8, 2)
    for quantity in (model.experts_read, model.busiest_rows):
        assert [quantity(parts, 1) for parts in (1, 2, 4, 8)] == pytest.approx([2, 10 / 7, 8 / 7, 1], rel=EXACT)


@pytest.mark.parametrize(("parts", "tokens"), [(2, 32), (8, 64), (8, LONGEST), (8, LONGEST + 1), (4, 400), (8, 9999)])
@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_many_tokens_against_another_simulation(parts: int, tokens: int, skew: float) -> None:
    """Counts of each pair are multinomial, of whatever number of tokens."""
    weights = 1.0 / (1 + np.arange(8)) ** skew
    odds = np.array([weights[a] * weights[b] for a, b in PAIRS])
    odds /= odds.sum()
    shares = tuple(sum(p for p, pair in zip(odds, PAIRS, strict=True) if expert in pair) for expert in range(8))
    members = np.array([[expert in pair for expert in range(8)] for pair in PAIRS], int)
    experts = np.random.default_rng([parts, tokens]).multinomial(tokens, odds, size=20_000) @ members
    held = experts.reshape(-1, parts, 8 // parts)
    model = RoutingModel(8, 2, (shares,) if skew else None)
    assert model.busiest_rows(parts, tokens) == pytest.approx(held.sum(axis=2).max(axis=1).mean(), rel=CLOSE)
    read = (held > 0).sum(axis=2).max(axis=1).mean()
    assert model.experts_read(parts, tokens) == pytest.approx(read, rel=CLOSE)


@pytest.mark.parametrize(("experts", "per_token", "parts"), [(64, 6, 8), (256, 2, 256), (256, 8, 64)])
@pytest.mark.parametrize("tokens", [4, 300, 2000])
def test_many_experts_against_another_simulation(experts: int, per_token: int, parts: int, tokens: int) -> None:
    rng, rows, read = np.random.default_rng(1), [], []
    for _ in range(max(150, 4000 // tokens)):
        chosen = rng.random((tokens, experts), np.float32).argpartition(per_token, axis=1)[:, :per_token]
        held = np.bincount(chosen.reshape(-1), minlength=experts).reshape(parts, -1)
        rows.append(held.sum(axis=1).max())
        read.append((held > 0).sum(axis=1).max())
    model = RoutingModel(experts, per_token)
    for found, samples in ((model.busiest_rows(parts, tokens), rows), (model.experts_read(parts, tokens), read)):
        error = np.std(samples) / len(samples) ** 0.5
        assert found == pytest.approx(np.mean(samples), abs=4 * error + STATED * found)


def test_experts_are_drawn_with_their_shares_and_once() -> None:
    layers = (SKEWED, (1.0, 0.5, 0.5, 0.0), (0.5,) * 4)
    choices = draw_choices(layers, 2, 40_000, np.random.default_rng(7))
    assert choices.shape == (3, 40_000, 2) and np.all(choices[..., 0] != choices[..., 1])
    for layer, shares in zip(choices, layers, strict=True):
        found = np.bincount(layer.reshape(-1), minlength=4) / 40_000
        assert found == pytest.approx(shares, abs=4 * 0.5 / 200)
    assert np.sum(choices[1] == 0) == 40_000 and not np.any(choices[1] == 3)  # always, and never
    pairs = np.bincount(choices[2].min(-1) * 4 + choices[2].max(-1), minlength=16)
    assert pairs[pairs > 0] / 40_000 == pytest.approx([1 / 6] * 6, abs=0.01)


def test_the_standard_error_is_below_what_is_stated() -> None:
    """Over eight seeds, each of which gives the same results every time."""
    for quantity in ("experts_read", "busiest_rows"):
        error, parts, tokens = standard_error(8, 2, None, quantity)
        assert 0 < error < STATED, (quantity, parts, tokens)
    one, other = (RoutingModel(8, 2, seed=seed).busiest_rows(4, 7) for seed in (0, 1))
    assert RoutingModel(8, 2).busiest_rows(4, 7) == one != other


def test_more_tokens_and_fewer_devices_read_more() -> None:
    for model in (RoutingModel(8, 2), RoutingModel(64, 6), RoutingModel(8, 2, ((0.9, 0.5, *(0.1,) * 6),))):
        for parts in (2, 4, 8):
            read = [model.experts_read(parts, 2**i) for i in range(7)]
            assert all(more >= fewer * (1 - STATED) for fewer, more in pairwise(read))
            assert read[-1] <= model.num_experts / parts
            assert all(model.experts_read(parts // 2, 2**i) >= read[i] for i in range(7))
            assert all(read[i] >= model.experts_read(1, 2**i) / parts for i in range(7))


def test_imbalance_of_a_recorded_load() -> None:
    layers = ((1.0, 0.5, 0.25, 0.25), (0.5, 0.5, 0.5, 0.5))
    routing = RoutingModel(4, 2, layers)
    assert routing.load_imbalance(2) == pytest.approx((1.5 / 1.0 + 1.0) / 2)
    assert routing.load_imbalance(1) == pytest.approx(1) and RoutingModel(4, 2).load_imbalance(4) == 1
    assert routing.busiest_rows(2, 4096) / 4096 == pytest.approx((1.5 + 1.0) / 2, rel=0.01)
    assert routing.experts_read(4, 1) > 0 and routing.experts_read(1, 1) == pytest.approx(2)
