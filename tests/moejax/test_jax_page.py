"""docs/jax.md is for a programmer, who types what it shows: its code runs, from top to bottom, and its asserts hold."""

import re
from pathlib import Path
from typing import Any

import pytest

import moejax

PAGE = Path(__file__).resolve().parents[2] / "docs" / "jax.md"


def test_the_code_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) > 5
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("<Model mixtral") and "<DecodeResult" in printed
    assert isinstance(names["again"], moejax.Model)
