"""The page of compiled programs is made of the JSON beside it."""

import json

from scripts import accelerators_page
from scripts.compiled_baseline import GPUS, PATHS, TPU_TOPOLOGIES, read_baseline
from tests.messages import says


def test_the_page_is_what_the_script_makes() -> None:
    assert accelerators_page.PAGE.read_text(encoding="utf-8") == accelerators_page.page()


def test_whole_programs_are_of_every_layer_and_as_the_closed_forms() -> None:
    whole = [one for path in accelerators_page.WHOLE.glob("*.json") for one in json.loads(path.read_text())]
    assert {one["case"]["target"] for one in whole} == {"h200", "v5e:2x4"}
    assert {one["case"]["layers"] for one in whole} == {32}
    assert {one["case"]["mesh"] for one in whole} == {"data=1,expert=4,tensor=2"}
    for one in whole:
        assert one["collectives"]["unpredicted"] == one["collectives"]["missing"] == []


def test_every_target_has_rows_and_a_list_of_what_is_slow() -> None:
    there = read_baseline(accelerators_page.DOCS.parent / PATHS["compile"])
    planted = next(case for case in there if case.program == "prefill" and case.target == "b200" and case.devices == 8)
    there[planted]["launches"] |= {"host_loops": 4, "loop_kernels": 40}
    slow = "\n".join(accelerators_page.slow_lines(there))
    says(slow, *(f"**{name}**" for name in GPUS))
    says(slow, "**b200**", 4, "loops", 40, "kernels", "prefill, 1 x 2,048 tokens on expert=4,tensor=2", "**l40s**")
    rows = list(accelerators_page.kernel_rows(there))
    assert {row[0] for row in rows} == set(GPUS)
    assert {len(row) for row in rows} == {len(accelerators_page.KERNEL_COLUMNS)}


def test_every_tpu_has_rows_and_says_what_was_substituted() -> None:
    tpus = read_baseline(accelerators_page.DOCS.parent / PATHS["compile-tpu"], "compile-tpu")
    rows = [accelerators_page.tpu_row(facts) for facts in tpus.values()]
    assert {row[0] for row in rows} == set(TPU_TOPOLOGIES)
    assert {len(row) for row in rows} == {len(accelerators_page.TPU_COLUMNS)}
    agree = accelerators_page.TPU_COLUMNS.index("as the closed forms")
    assert {row[agree].split(" ")[0] for row in rows} <= {"yes", "but"}
    assert any(row[agree].startswith("but for") for row in rows)
