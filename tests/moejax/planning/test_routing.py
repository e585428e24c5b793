"""Sampled routing: against enumeration where that is possible, against another seed everywhere else."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from moejax.planning.routing import RoutingModel, distinct_experts, draw_choices

SAMPLING = 0.015  # three standard errors of two results that are each within 0.5%
SKEWED = (0.05, 0.6, 0.15, 0.3, 0.2, 0.1, 0.4, 0.2)


def enumerated(num_experts: int, chosen: int, parts: int, tokens: int) -> tuple[float, float]:
    """Experts read and rows computed by the busiest device, over every choice of every token."""
    sets = list(itertools.combinations(range(num_experts), chosen))
    each = -(-num_experts // parts)
    read = rows = 0
    cases = list(itertools.product(sets, repeat=tokens))
    for case in cases:
        counts = np.bincount([expert for one in case for expert in one], minlength=each * parts).reshape(parts, each)
        read, rows = read + (counts > 0).sum(axis=1).max(), rows + counts.sum(axis=1).max()
    return read / len(cases), rows / len(cases)


@pytest.mark.parametrize(
    ("num_experts", "chosen", "parts", "tokens"),
    [(8, 2, 4, 1), (8, 2, 8, 2), (8, 2, 2, 3), (6, 3, 3, 2), (4, 1, 4, 4), (5, 2, 2, 3), (8, 2, 3, 2)],
)
def test_equals_enumeration(num_experts: int, chosen: int, parts: int, tokens: int) -> None:
    read, rows = enumerated(num_experts, chosen, parts, tokens)
    model = RoutingModel(num_experts, chosen)
    assert model.experts_read(parts, tokens) == pytest.approx(read, rel=SAMPLING)
    assert model.busiest_rows(parts, tokens) == pytest.approx(rows, rel=SAMPLING)


@pytest.mark.parametrize("num_experts", [8, 60, 128])
@pytest.mark.parametrize("tokens", [1, 7, 200, 5000])
def test_what_has_a_closed_form_is_exact(num_experts: int, tokens: int) -> None:
    model = RoutingModel(num_experts, 2)
    assert model.experts_read(1, tokens) == pytest.approx(distinct_experts(num_experts, 2, tokens), rel=1e-9)
    assert model.busiest_rows(1, tokens) == 2 * tokens
    everything = RoutingModel(num_experts, num_experts)
    assert everything.experts_read(4, tokens) == num_experts / 4
    assert everything.busiest_rows(4, tokens) == tokens * num_experts / 4


@pytest.mark.parametrize("shares", [None, (SKEWED,)])
@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("tokens", [2, 16, 128, 129, 4096])
def test_another_seed_says_the_same(shares: tuple[tuple[float, ...], ...] | None, parts: int, tokens: int) -> None:
    model = RoutingModel(8, 2, shares)
    other = replace(model, seed=1)
    assert model == RoutingModel(8, 2, shares) and model.busiest_rows(parts, tokens) == model.busiest_rows(
        parts, tokens
    )
    assert other.experts_read(parts, tokens) == pytest.approx(model.experts_read(parts, tokens), rel=SAMPLING)
    assert other.busiest_rows(parts, tokens) == pytest.approx(model.busiest_rows(parts, tokens), rel=SAMPLING)


def test_the_busiest_device_approaches_its_share() -> None:
    """With many tokens the rows are those of the shares, uniform or recorded."""
    assert RoutingModel(8, 2).busiest_rows(4, 65536) == pytest.approx(2 * 65536 / 4, rel=0.01)
    skewed = RoutingModel(8, 2, (SKEWED,))
    assert skewed.load_imbalance(4) == pytest.approx(0.65 / 0.5)
    assert skewed.busiest_rows(4, 65536) == pytest.approx(0.65 * 65536, rel=0.01)


def test_draws_have_the_recorded_shares_and_no_expert_twice() -> None:
    choices = draw_choices((SKEWED,), 2, 40000, np.random.default_rng(0))[0]
    assert (choices[:, 0] != choices[:, 1]).all()
    np.testing.assert_allclose(np.bincount(choices.ravel(), minlength=8) / 40000, SKEWED, atol=0.01)


def test_experts_that_do_not_divide_fill_the_first_devices() -> None:
    """8 experts on 3 devices: 3, 3 and 2; on as many devices as experts, one each."""
    assert RoutingModel(8, 2).experts_read(3, 5000) == pytest.approx(3, rel=1e-3)
    assert RoutingModel(8, 2).experts_read(8, 5) == 1.0
