"""The flags that several of the `moejax bench` commands have."""

from pathlib import Path
from typing import Annotated, Any

import typer

from moejax.cli.options import whole_number
from moejax.families.config import NAMED_CONFIGS

WORK, MODEL, OUTPUT = "What is timed", "Model", "Results"


class Numbers(tuple[int, ...]):
    """Whole numbers given with commas."""


class Range(tuple[int, int]):
    """The ends of a range given as LOW-HIGH."""


# Defaults, as parsed.
NO_NUMBERS = Numbers()
BATCH_SIZES, INPUT_LENS, OUTPUT_LENS = Numbers((1,)), Numbers((128,)), Numbers((64,))
RAGGED = Range((16, 256))
RANGE_DEFAULT = f"{RAGGED[0]}-{RAGGED[1]} by default."  # typer shows a text as a default in parentheses


def numbers(value: Any) -> Numbers:
    """Numbers from the command line, as in 1,8,16 (or the default, which are some)."""
    if isinstance(value, Numbers):
        return value
    try:
        return Numbers(int(part) for part in value.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"must be whole numbers with commas, as in 1,8,16, got {value!r}") from error


def number_range(value: Any) -> Range:
    """A range from the command line, as in 16-256; a single number is one of that length."""
    if isinstance(value, Range):
        return value
    ends = value.split("-")
    if len(ends) > 2 or not all(end.isdecimal() for end in ends) or not 1 <= int(ends[0]) <= int(ends[-1]):
        raise typer.BadParameter(f"must be LOW-HIGH with 1 <= LOW <= HIGH, or one length, got {value!r}")
    return Range((int(ends[0]), int(ends[-1])))


Checkpoint = Annotated[
    str | None,
    typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder, demo, or random:NAME.", show_default=False),
]
Random = Annotated[
    str | None,
    typer.Option(
        "--random",
        rich_help_panel=MODEL,
        metavar="MODEL",
        help=f"Random weights instead of a CHECKPOINT: {', '.join(NAMED_CONFIGS)}, or the path of a config.json.",
    ),
]


def _list(*flags: str, help: str) -> Any:
    return typer.Option(*flags, rich_help_panel=WORK, parser=numbers, metavar="N[,N...]", help=help)


def _whole(*flags: str, help: str, panel: str = WORK) -> Any:
    return typer.Option(*flags, rich_help_panel=panel, parser=whole_number, metavar="N", help=help)


BatchSizes = Annotated[Numbers, _list("--batch-size", "-b", help="Prompts at a time.")]
InputLens = Annotated[Numbers, _list("--input-len", "-p", help="Tokens of each prompt.")]
OutputLens = Annotated[Numbers, _list("--output-len", "-n", help="Tokens generated after each prompt.")]
PrefillLens = Annotated[
    Numbers,
    typer.Option(
        "--prefill-len",
        rich_help_panel=WORK,
        parser=numbers,
        metavar="N[,N...]",
        help="Also time the prefill of one prompt of N tokens by itself.",
        show_default=False,
    ),
]
NumPrompts = Annotated[int, _whole("--num-prompts", help="Requests in all.")]
InputRange = Annotated[
    Range,
    typer.Option(
        "--input-len",
        "-p",
        rich_help_panel=WORK,
        parser=number_range,
        metavar="LOW-HIGH",
        help=f"Tokens of each prompt, drawn from this range; {RANGE_DEFAULT}",
        show_default=False,
    ),
]
OutputRange = Annotated[
    Range,
    typer.Option(
        "--output-len",
        "-n",
        rich_help_panel=WORK,
        parser=number_range,
        metavar="LOW-HIGH",
        help=f"Tokens generated after each prompt, drawn from this range; {RANGE_DEFAULT}",
        show_default=False,
    ),
]
Rounds = Annotated[int, _whole("--num-iters", "-r", help="Rounds that are timed.")]
Warmup = Annotated[int, _whole("--num-iters-warmup", help="Rounds before them, which compile.")]
Seed = Annotated[int, _whole("--model-seed", panel=MODEL, help="Seed of random weights.")]
Json = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print a JSON object instead of a table.")]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        rich_help_panel=OUTPUT,
        metavar="DIR",
        help="Write JSON with every sample, a Markdown page and PNG plots there (needs moejax[bench]). DIR is made, or "
        "written over; the folder that it is in has to exist.",
        show_default=False,
    ),
]
