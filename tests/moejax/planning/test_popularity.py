"""Shares of experts by Zipf's law and from a Dirichlet: what they are, and that tokens choose by them."""

import numpy as np
import pytest

from moejax.planning.popularity import Dirichlet, Zipf, capped_shares
from moejax.planning.routing import draw_choices
from tests.messages import refuses


def test_zipf_shares_by_hand() -> None:
    (shares,) = Zipf(1.0).shares(1, 4, 2)
    assert sorted(shares, reverse=True) == pytest.approx([24 / 25, 12 / 25, 8 / 25, 6 / 25])  # 2 / rank / (25 / 12)
    (steep,) = Zipf(2.0).shares(1, 4, 2)  # the first would be 288 / 205: every token chooses it, and one of the others
    others = 1 / 4 + 1 / 9 + 1 / 16
    assert sorted(steep, reverse=True) == pytest.approx([1, 1 / 4 / others, 1 / 9 / others, 1 / 16 / others])


def test_every_layer_has_an_order_of_its_own() -> None:
    layers = Zipf(1.0).shares(32, 8, 2)
    first = [int(np.argmax(layer)) for layer in layers]
    assert len(set(first)) > 4 and all(sorted(layer) == sorted(layers[0]) for layer in layers)
    assert layers == Zipf(1.0).shares(32, 8, 2) != Zipf(1.0, seed=1).shares(32, 8, 2)


@pytest.mark.parametrize("concentration", [0.05, 0.5, 1.0, 1000.0])
def test_dirichlet_shares_are_probabilities(concentration: float) -> None:
    shares = np.array(Dirichlet(concentration).shares(200, 8, 2))
    assert shares.min() >= 0 and shares.max() <= 1
    assert shares.sum(axis=1) == pytest.approx(np.full(200, 2.0))
    assert np.array(Dirichlet(concentration, seed=1).shares(200, 8, 2)).tolist() != shares.tolist()


def test_a_small_concentration_is_uneven_and_a_large_one_even() -> None:
    largest = [np.array(Dirichlet(c).shares(400, 8, 1)).max(axis=1).mean() for c in (0.05, 1.0, 1000.0)]
    assert largest[0] > 0.75  # one expert has nearly everything
    assert largest[1] == pytest.approx(sum(1 / k for k in range(1, 9)) / 8, rel=0.05)  # of a broken stick
    assert largest[2] == pytest.approx(1 / 8, rel=0.1)


@pytest.mark.parametrize("law", [Zipf(1.0), Zipf(2.0), Dirichlet(0.5)], ids=str)
def test_tokens_choose_by_the_shares_and_no_expert_twice(law: Zipf | Dirichlet) -> None:
    shares = law.shares(2, 8, 2)
    chosen = draw_choices(shares, 2, 20_000, np.random.default_rng(0))
    assert (chosen[..., 0] != chosen[..., 1]).all()
    for layer, wanted in enumerate(shares):
        found = np.bincount(chosen[layer].reshape(-1), minlength=8) / 20_000
        assert found == pytest.approx(np.array(wanted), abs=0.01)


def test_the_heaviest_are_certain_where_weights_leave_no_other_choice() -> None:
    assert capped_shares(np.array([8.0, 1.0, 4.0, 1.0]), 3) == pytest.approx((1.0, 0.5, 1.0, 0.5))
    assert capped_shares(np.array([1.0, 2.0]), 2) == (1.0, 1.0)


def test_numbers_out_of_range_are_refused() -> None:
    for exponent in (0.0, 10.5, float("nan")):
        with refuses(ValueError, "Zipf", "0", "10"):
            Zipf(exponent)
    for concentration in (0.0, 0.01, 2000.0):
        with refuses(ValueError, "Dirichlet", "0.05", "1000"):
            Dirichlet(concentration)
