"""Crossovers along the batch size, and what a picture says of them."""

from pathlib import Path

import pytest

from moejax._sharding import MeshConfig
from moejax.families.table import named_config
from moejax.moe.split import Split
from moejax.planning.compare import compare_meshes, make_plan, predict_split
from moejax.planning.crossovers import ThroughputCurve, batch_crossovers, curve
from moejax.planning.plots import check_plot, chosen_curves, crossover_text, draw
from moejax.planning.workload import Workload
from tests.messages import refuses

SPLIT = Split(mesh=MeshConfig(), dispatch="replicated", remark=None)


def made(label: str, *speeds: float) -> ThroughputCurve:
    return ThroughputCurve(
        label=label, split=SPLIT, batches=tuple(2**i for i in range(len(speeds))), tokens_per_second=tuple(speeds)
    )


def test_curves_that_cross_meet_between_two_batches() -> None:
    (found,) = batch_crossovers([made("a", 10, 20, 40, 80), made("b", 5, 15, 50, 200)])
    assert (found.earlier, found.later, found.below, found.above) == ("a", "b", 2, 4)
    assert 2 < found.batch < 4 and 20 < found.tokens_per_second < 40


def test_curves_that_touch_or_stay_apart_do_not_cross() -> None:
    assert batch_crossovers([made("a", 10, 20, 40), made("b", 5, 20, 20)]) == []
    assert batch_crossovers([made("a", 10, 20, 40), made("b", 10, 20, 40), made("c", 1, 2, 3)]) == []
    assert crossover_text([]).startswith("no crossover")


def test_curves_that_cross_where_they_are_equal_and_cross_back() -> None:
    found = batch_crossovers([made("a", 10, 20, 40, 80), made("b", 5, 20, 50, 60)])
    assert [(one.later, one.below, one.above) for one in found] == [("b", 1, 4), ("a", 4, 8)]
    assert crossover_text(found) == "1: b overtakes a between 1 and 4\n2: a overtakes b between 4 and 8"


def test_a_crossover_of_real_splits_is_where_the_order_changes() -> None:
    """Eight L40S: links so slow that gather overtakes tensor for large batches."""
    plan = make_plan("mixtral-8x7b", "l40s", software="ideal")
    tensor = Split(mesh=MeshConfig(tensor=8), dispatch="replicated", remark=None)
    gather = Split(mesh=MeshConfig(expert=8), dispatch="gather", remark=None)
    work = Workload(batch_size=1)
    (found,) = batch_crossovers([curve(plan, split, work, 512) for split in (tensor, gather)])
    assert (found.earlier, found.later) == ("tensor=8", "expert=8 gather")
    for batch, ahead in ((found.below, tensor), (found.above, gather)):
        rows = [predict_split(plan, s, Workload(batch_size=batch)) for s in (tensor, gather)]
        assert max(rows, key=lambda row: row.tokens_per_second_total).split == ahead


@pytest.mark.parametrize(("hardware", "devices", "crosses"), [("l40s", 8, True), ("h100-sxm", 2, False)])
def test_pictures_are_drawn(tmp_path: Path, hardware: str, devices: int, crosses: bool) -> None:
    rows = compare_meshes("mixtral-8x7b", devices, hardware, batch_size=[1, 8], software="ideal")
    plan = make_plan("mixtral-8x7b", hardware, software="ideal")
    curves = chosen_curves([row for row in rows if row.fits and row.built], plan)
    labels = [one.label for one in curves]
    assert f"tensor={devices}" in labels and f"expert={devices} gather" in labels and len(labels) <= 8
    assert bool(batch_crossovers(curves)) == crosses
    if crosses:  # a picture takes a second; the one with circles has everything in it
        draw(rows, plan, "title of the picture", tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_be_drawn_is_told_before() -> None:
    with refuses(ValueError, "--plot", ".png, .svg or .pdf", "'a.gif'"):
        check_plot("a.gif")
    with refuses(ValueError, "no such folder", "make it"):
        check_plot("nowhere/a.png")
    rows = compare_meshes(named_config("mixtral-8x7b"), 1, "l40s", batch_size=1)
    with refuses(ValueError, "no split"):
        draw(rows, make_plan("mixtral-8x7b", "l40s", software="ideal"), "", Path("a.png"))


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moejax.planning.plots.find_spec", lambda name: None)
    with refuses(ValueError, "--plot", "pip install 'moejax[plot]'"):
        check_plot("a.png")
