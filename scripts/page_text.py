"""Text of generated pages at 120 columns, for the numbers in it are of any length."""

import re
import textwrap

WIDTH = 120


def paragraph(text: str) -> str:
    """One paragraph, with the end of its last line."""
    return _fill(text) + "\n"


def bullet(text: str) -> str:
    """One point of a list."""
    return _fill(f"- {text}")


def wrapped(text: str) -> str:
    """Paragraphs and points of lists filled; tables, headings and code as they are."""
    blocks = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    return "".join(block if block.startswith("```") else _filled(block) for block in blocks)


def _filled(text: str) -> str:
    paragraphs = re.split(r"\n(?=\n|- |\|)", text)
    kept = ("|", "\n|", "\n#", "#")
    return "\n".join(one if one.startswith(kept) or not one.strip() else _refill(one) for one in paragraphs)


def _refill(text: str) -> str:
    start = "\n" if text.startswith("\n") else ""
    end = "\n" if text.endswith("\n") else ""
    return start + _fill(" ".join(text.split())) + end


def _fill(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
