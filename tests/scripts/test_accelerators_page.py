"""The page of compiled programs is made of the JSON beside it."""

import json

from scripts import accelerators_page
from scripts.compiling.baseline import PATH, read_baseline
from scripts.compiling.targets import TARGETS
from tests.messages import says


def test_the_page_is_what_the_script_makes() -> None:
    assert accelerators_page.PAGE.read_text(encoding="utf-8") == accelerators_page.page()


def test_whole_programs_are_of_every_layer_and_as_the_closed_forms() -> None:
    whole = json.loads(accelerators_page.WHOLE.read_text(encoding="utf-8"))
    assert {one["case"]["layers"] for one in whole} == {32}
    assert {one["case"]["mesh"] for one in whole} == {"data=1,expert=4,tensor=2"}
    for one in whole:
        assert one["collectives"]["unpredicted"] == one["collectives"]["missing"] == []


def test_every_target_has_rows_and_a_list_of_what_is_slow() -> None:
    there = read_baseline(accelerators_page.DOCS.parent / PATH)
    planted = next(case for case in there if case.program == "prefill" and case.target == "b200" and case.devices == 8)
    there[planted]["launches"] |= {"host_loops": 4, "loop_kernels": 40}
    slow = "\n".join(accelerators_page.slow_lines(there))
    says(slow, *(f"**{name}**" for name in TARGETS))
    says(slow, "**b200**", 4, "loops", 40, "kernels", "prefill, 1 x 2,048 tokens on expert=4,tensor=2", "**l40s**")
    rows = list(accelerators_page.kernel_rows(there))
    assert {row[0] for row in rows} == set(TARGETS)
    assert {len(row) for row in rows} == {len(accelerators_page.KERNEL_COLUMNS)}
