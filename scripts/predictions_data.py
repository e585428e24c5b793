"""The committed files that docs/predictions.md is made of."""

import json
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[1] / "docs" / "predictions"


@cache
def read(name: str) -> Any:
    """One of them, by its name without the ending."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
