"""Why a split is the best: plain sentences, whose numbers tell the splits apart."""

import io
import re
from dataclasses import replace
from typing import cast

import pytest
from rich.console import Console

from moejax import compare_meshes
from moejax.cli.mesh_tables import TableSetting, compare_tables
from moejax.moe.split import DISPATCHES
from moejax.planning.export import winners
from moejax.planning.hardware_file import load_hardware
from moejax.planning.objectives import OBJECTIVES, Objective
from moejax.planning.question import Question
from moejax.planning.ranking import SAME, best, first, ranked
from moejax.planning.reasons import reason
from moejax.planning.rows import MeshRow
from moejax.planning.units import BYTES, SECONDS
from tests.messages import says

NUMBER = r"[\d,]*\d(?:\.\d+)?"
UNIT = r"(?:GB|MB|kB|bytes|s|ms|us|ns)"
# With a unit of its own where the other number is far from it.
MINE = rf"(?P<mine>{NUMBER})(?: (?P<own>{UNIT}))?"
ITS = rf"(?P<its>{NUMBER}) (?P<unit>{UNIT})"
SCALES = {unit.name: unit.scale for units in (BYTES, SECONDS) for unit in units}
SAVINGS = (
    rf"reads (?P<mine>{NUMBER}) instead of (?P<its>{NUMBER}) experts per layer and device",
    rf"reads {MINE} instead of {ITS} of weights outside the experts per device",
    rf"reads {MINE} instead of {ITS} of the cache per device",
    rf"spends {MINE} instead of {ITS} on (?:reading weights|computing that reads do not hide|"
    "sending data between devices|overhead of layers and experts)",
    rf"waits {MINE} instead of {ITS} for the latency of collectives",
    rf"holds {MINE} instead of {ITS} per device",
    rf"decodes (?P<its>{NUMBER}) instead of (?P<mine>{NUMBER}) tokens/s at the largest batch"
    rf"(?: of each)? \({NUMBER}(?: and {NUMBER})?\)",
)
BEHIND = rf"(?:(?:takes|needs) (?:{NUMBER}% (?:longer|more)|{NUMBER} times as (?:long|much))|decodes {NUMBER}% fewer)"
NAMES = rf"[a-z=,\d]+(?: (?:device|{'|'.join(DISPATCHES)}))?"
LIST = rf"{NAMES}(?:(?:, {NAMES})? and (?:{NAMES}|\d+ more))?"
SIMPLEST = rf"is the simplest of equally good splits \(within 1%\), beside {LIST}"
GRID = [
    (model, devices, hardware)
    for model in ("mixtral-8x7b", "mixtral-8x22b", "186m", "demo")
    for devices, hardware in ((1, "h200"), (2, "a100-80gb"), (4, "l40s"), (6, "cpu"), (8, "h100-sxm"), (16, "h200"))
]


@pytest.mark.parametrize(("model", "devices", "hardware"), GRID)
def test_every_reason_is_a_sentence_and_its_numbers_differ(model: str, devices: int, hardware: str) -> None:
    rows = compare_meshes(model, devices, hardware, batch_size=[1, 48])
    said = [text for row in rows for text in row.best_for.values()]
    fitting = {row.workload.batch_size for row in rows if row.fits}
    assert len(said) == len(OBJECTIVES) * len(fitting)
    for text in said:
        if text == "is the only split that fits" or re.fullmatch(SIMPLEST, text):
            continue
        *equal, saving, behind = text.split("; ")
        (found,) = filter(None, (re.fullmatch(pattern, saving) for pattern in SAVINGS))
        mine, its = (float(found[name].replace(",", "")) for name in ("mine", "its"))
        named = found.groupdict()
        if named.get("own"):
            mine, its = mine * SCALES[named["own"]], its * SCALES[named["unit"]]
        assert mine < its, text
        assert re.fullmatch(rf"the next, {NAMES}, {BEHIND}", behind), text
        assert len(equal) < 2 and (not equal or re.fullmatch(SIMPLEST, equal[0])), text
        lead = re.search(r"(?<!\d)(0\.\d)% (?:longer|more|fewer)", behind)
        assert not lead or float(lead[1]) >= 100 * SAME, text  # less is as good


def test_a_reason_names_what_is_saved_the_next_and_those_that_are_as_good() -> None:
    rows = compare_meshes("mixtral-8x7b", 4, "h200", batch_size=1, software="ideal")
    by_label = {row.label: row for row in rows}
    pair = [by_label["tensor=4"], by_label["expert=4 replicated"]]
    says(reason(pair[0], pair, "latency"), "0.50 instead of 1.14", "expert=4 replicated")
    says(reason(pair[0], pair, "memory"), "simplest", "1%", "expert=4 replicated")
    says(reason(pair[0], pair[:1], "ttft"), "only")
    says(reason(pair[0], rows, "ttft"), "simplest", "1%", "expert=2,tensor=2 replicated", "expert=4 replicated")


def test_within_the_tolerance_the_simplest_is_first_whatever_leads_by_less() -> None:
    rows = compare_meshes("mixtral-8x7b", 4, "h200", batch_size=1, software="ideal")
    by_label = {row.label: row for row in rows}

    def stepping(label: str, seconds: float) -> MeshRow:
        step = by_label[label].decode
        assert step
        return replace(by_label[label], decode=replace(step, overhead_seconds=seconds - step.seconds))

    for lead, equal in ((0.0, True), (0.002, True), (0.0099, True), (0.0101, False), (0.02, False)):
        pair = [stepping("expert=2,tensor=2 replicated", 1.0), stepping("tensor=4", 1.0 + lead)]
        winner = "tensor=4" if equal else "expert=2,tensor=2 replicated"
        for chosen in (best(pair, "latency"), first(pair, "latency"), ranked(pair, "latency")[0]):
            assert chosen and chosen.label == winner
            said = reason(chosen, pair, "latency")
            assert ("simplest" in said) == equal and ("the next" in said) != equal


def test_weights_that_are_read_again_are_a_reason() -> None:
    """An expert split in four fits the cache; one split in two is read again for each tile of a prefill."""
    rows = compare_meshes("mixtral-8x22b", 8, "h100-sxm", batch_size=48)
    by_label = {row.label: row for row in rows}
    parts, halves = by_label["data=2,tensor=4"], by_label["data=2,expert=2,tensor=2 replicated"]
    assert parts.prefill and halves.prefill and parts.prefill.weight_bytes == halves.prefill.weight_bytes
    says(reason(parts, [parts, halves], "ttft"), "153 instead of 171 ms", "reading weights")


def test_an_objective_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up one, bytes that a step exchanges, ranks, is given reasons and heads its column."""

    def exchanged(row: MeshRow) -> float:
        assert row.decode
        return row.decode.bandwidth_seconds + row.decode.latency_seconds

    wire = Objective(
        score=exchanged,
        column="step",
        saving=lambda row, other: f"exchanges for {exchanged(row):.3g} s",
        behind=lambda mine, its: f"for {its - mine:.3g} s more",
    )
    monkeypatch.setitem(cast(dict[str, Objective], OBJECTIVES), "wire", wire)
    rows = compare_meshes("mixtral-8x7b", 8, "h100-sxm", batch_size=8, objective="wire")
    fitting = [row for row in rows if row.fits and row.built]
    assert [exchanged(row) for row in fitting] == sorted(exchanged(row) for row in fitting)
    assert f"{exchanged(fitting[0]):.3g}" in fitting[0].best_for["wire"]
    assert winners(rows)["wire"]["split"] == fitting[0].label
    console = Console(width=120, file=io.StringIO())
    question = Question(model="mixtral-8x7b", hardware=load_hardware("h100-sxm"), objective="wire")
    asked = TableSetting(question=question, devices="8", fits_with=(), width=120)
    console.print(*compare_tables(rows, asked))
    assert "best wire:" in cast(io.StringIO, console.file).getvalue()
