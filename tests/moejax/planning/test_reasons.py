"""Why a split is the best: plain sentences, whose numbers tell the splits apart."""

import re

import pytest

from moejax import compare_meshes
from moejax.planning.reasons import reason
from moejax.planning.rows import OBJECTIVES
from tests.messages import says

NUMBER = r"[\d,]*\d(?:\.\d+)?"
UNIT = r"(?:GB|MB|kB|bytes|s|ms|us|ns)"
SAVINGS = (
    rf"reads (?P<mine>{NUMBER}) instead of (?P<its>{NUMBER}) experts per layer and device",
    rf"reads (?P<mine>{NUMBER}) instead of (?P<its>{NUMBER}) {UNIT} of weights outside the experts per device",
    rf"reads (?P<mine>{NUMBER}) instead of (?P<its>{NUMBER}) {UNIT} of the cache per device",
    rf"spends (?P<mine>{NUMBER}) instead of (?P<its>{NUMBER}) {UNIT} on (?:computing that reads do not hide|"
    "sending data between devices|overhead of layers and experts)",
    rf"waits (?P<mine>{NUMBER}) instead of (?P<its>{NUMBER}) {UNIT} for the latency of collectives",
    rf"holds (?P<mine>{NUMBER}) instead of (?P<its>{NUMBER}) {UNIT} per device",
    rf"decodes (?P<its>{NUMBER}) instead of (?P<mine>{NUMBER}) tokens/s at the largest batch"
    rf"(?: of each)? \({NUMBER}(?: and {NUMBER})?\)",
)
BEHIND = rf"(?:(?:takes|needs) (?:{NUMBER}% (?:longer|more)|{NUMBER} times as (?:long|much))|decodes {NUMBER}% fewer)"
NAMES = r"[a-z=,\d]+(?: (?:device|replicated|gather|all_to_all))?"
LIST = rf"{NAMES}(?:(?:, {NAMES})? and (?:{NAMES}|\d+ more))?"
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
        if text == "is the only split that fits" or re.fullmatch(rf"is as good as {LIST}", text):
            continue
        saving, behind, *equal = text.split("; ")
        (found,) = filter(None, (re.fullmatch(pattern, saving) for pattern in SAVINGS))
        mine, its = (float(found[name].replace(",", "")) for name in ("mine", "its"))
        assert mine < its, text
        assert re.fullmatch(rf"the next, {NAMES}, {BEHIND}", behind), text
        assert not equal or re.fullmatch(rf"equally good: {LIST}", equal[0]), text


def test_a_reason_names_what_is_saved_the_next_and_those_that_are_as_good() -> None:
    rows = compare_meshes("mixtral-8x7b", 4, "h200", batch_size=1)
    by_label = {row.label: row for row in rows}
    pair = [by_label["tensor=4"], by_label["expert=4 replicated"]]
    says(reason(pair[0], pair, "latency"), "0.50 instead of 1.14", "expert=4 replicated")
    says(reason(pair[0], pair, "memory"), "as good as expert=4 replicated")
    says(reason(pair[0], pair[:1], "ttft"), "only")
    says(reason(pair[0], rows, "ttft"), "equally good", "expert=2,tensor=2 replicated", "expert=4 replicated")
