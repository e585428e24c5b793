"""docs/expert-load.md and its examples: what is written, what is read, and the code that makes one of the other."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from moejax import compare_meshes
from moejax.planning.expert_load import read_expert_load, traced_load, write_expert_load
from tests.messages import refuses

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/expert-load.md").read_text(encoding="utf-8")
LOAD, TRACE = ROOT / "docs/examples/expert_load.json", ROOT / "docs/examples/routing_trace.json"


def test_the_page_shows_the_example(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert shown == LOAD.read_text()
    write_expert_load(tmp_path / "again.json", read_expert_load(LOAD))
    assert (tmp_path / "again.json").read_text() == shown
    keys = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(keys)) == list(json.loads(shown))


def test_the_code_of_the_page_makes_the_load_of_the_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "build").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "expert-load.md", "exec"), {})
    assert read_expert_load(tmp_path / "build/expert_load.json") == read_expert_load(LOAD)


def test_the_example_is_a_load_of_the_demo() -> None:
    rows = compare_meshes("demo", 4, "h200", batch_size=8, expert_load=LOAD)
    even = compare_meshes("demo", 4, "h200", batch_size=8)
    imbalance = {row.label: row.load_imbalance for row in rows}
    assert imbalance["expert=4 replicated"] > 1 == imbalance["tensor=4"]
    assert {row.load_imbalance for row in even} == {1.0}


def test_what_is_no_trace_is_refused() -> None:
    trace = np.array(json.loads(TRACE.read_text()))
    assert traced_load("demo", 8, trace.astype(np.int16)) == read_expert_load(LOAD)
    for wrong, facts in (
        (trace[0], ("layers", "[4, 2]")),
        (trace.astype(float), ("whole numbers", "float64")),
        (trace + 1, ("8 experts", "0 to 7", "8")),
        (trace - 1, ("8 experts", "0 to 7", "-1")),
        (trace * 0, ("twice",)),
    ):
        with refuses(ValueError, *facts):
            traced_load("demo", 8, wrong)
