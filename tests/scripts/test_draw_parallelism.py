"""The pictures of docs/parallelism.md: those in the repository are what the script draws, and nothing else."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from moejax.moe.split import DISPATCHES
from scripts.draw_parallelism import FLOWS, pictures

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAMES = sorted(path.name for path in (DOCS / "pictures").glob("*.svg"))


def test_the_page_shows_every_picture() -> None:
    shown = re.findall(r"\(pictures/([\w.]+)\)", (DOCS / "parallelism.md").read_text(encoding="utf-8"))
    assert sorted(shown) == NAMES == sorted(pictures())
    assert set(FLOWS) == set(DISPATCHES)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_up_to_date(name: str) -> None:
    """Else: python scripts/draw_parallelism.py docs/pictures"""
    drawn = pictures()[name]
    assert (DOCS / "pictures" / name).read_text(encoding="utf-8") == drawn
    ElementTree.fromstring(drawn)
