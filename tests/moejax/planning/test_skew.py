"""Skews by name, and what they do to both phases of a comparison."""

import math

import pytest

from moejax import MeshRow, compare_meshes
from moejax.planning.export import comparison_json
from moejax.planning.hardware_file import load_hardware
from moejax.planning.loads import Balanced, PowerLaw
from moejax.planning.popularity import Dirichlet, Zipf
from moejax.planning.question import Question
from moejax.planning.skew import parse_skew, skew_said
from tests.messages import refuses, says


def test_skews_by_name() -> None:
    assert parse_skew("uniform") is None and parse_skew("balanced") == Balanced()
    assert parse_skew("power-law:1.2") == PowerLaw(1.2)
    assert parse_skew("zipf:1.0") == parse_skew("zipf:1") == Zipf(1.0)
    assert parse_skew("dirichlet:0.5") == parse_skew("Dirichlet:0.5") == Dirichlet(0.5)
    with refuses(ValueError, "zipf:-1", "above 0", "10"):
        parse_skew("zipf:-1")
    wrong = ("power-law", "power-law:", "power_law:1", "even", "power-law:x", "power-law:-1", "power-law:nan")
    for name in (*wrong, "uniform:1", "balanced:2"):
        with refuses(ValueError, "skew"):
            parse_skew(name)
    assert parse_skew("Zipf:1") == Zipf(1.0) and parse_skew("UNIFORM") is None


@pytest.mark.parametrize("number", ["", "-1", "0", "-0.5", "1e9", "99999", "x", "nan", "1,5"])
@pytest.mark.parametrize(
    ("law", "ends"), [("zipf", ("0", "10")), ("power-law", ("0", "10")), ("dirichlet", ("0.05", "1000"))]
)
def test_a_number_out_of_range_is_told_the_range(law: str, ends: tuple[str, str], number: str) -> None:
    for text in (f"{law}:{number}", law):
        with refuses(ValueError, "skew", *ends):
            parse_skew(text)
    assert not math.isnan(PowerLaw(10).rows(10, 2, 8).sum())


def test_each_is_said_but_the_uniform_one() -> None:
    assert skew_said("uniform") is None
    for name in ("balanced", "power-law:1.01", "zipf:1.0", "dirichlet:0.5"):
        says(skew_said(name) or "", name)


def compared(skew: str) -> dict[str, MeshRow]:
    rows = compare_meshes("mixtral-8x7b", 8, "h200", batch_size=64, software="ideal", skew=skew)
    return {row.label: row for row in rows}


def test_a_law_makes_expert_slower_than_tensor_in_both_phases() -> None:
    even = compared("uniform")
    for skew in ("zipf:1.0", "dirichlet:0.5"):
        skewed = compared(skew)
        for phase in ("decode", "prefill"):
            before, after = (getattr(one["expert=8 replicated"], phase) for one in (even, skewed))
            assert after.imbalance > 1.5 * before.imbalance
            apart, same = (getattr(one["tensor=8"], phase) for one in (even, skewed))
            assert apart.imbalance == same.imbalance == 1
        after, before = skewed["expert=8 replicated"].prefill, even["expert=8 replicated"].prefill
        assert after and before and after.seconds > before.seconds
        assert skewed["expert=8 replicated"].load_imbalance > 1.5
    # Zipf's: the busiest of eight devices has the first expert, 2 / (1 + 1/2 + ... + 1/8) of the tokens for 1/4 each.
    assert compared("zipf:1.0")["expert=8 replicated"].load_imbalance == pytest.approx(
        4 * 2 / sum(1 / rank for rank in range(1, 9))
    )


def test_json_says_which() -> None:
    hardware = load_hardware("h200")
    rows = compare_meshes("demo", 2, hardware, batch_size=1, skew="zipf:1.0")
    for skew, expert_load in (("zipf:1.0", None), (None, "a.json")):
        asked = Question(model="demo", hardware=hardware, skew=skew, expert_load=expert_load)
        assert comparison_json(rows, asked)["routing"] == {"skew": skew, "expert_load": expert_load}


def test_a_law_and_a_recorded_load_are_one_too_many() -> None:
    with refuses(ValueError, "skew=zipf:1.0", "expert load"):
        compare_meshes("demo", 1, "h200", skew="zipf:1.0", expert_load="demo")
