"""The flags that several of the `moejax bench` commands have."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from moejax.cli.options import option, whole
from moejax.cli.sources import Revision, pinned
from moejax.families.table import RANDOM, named_configs

WORK, MODEL, OUTPUT = "What is timed", "Model", "Results"


class Numbers(tuple[int, ...]):
    """Whole numbers given with commas."""


class Range(tuple[int, int]):
    """The ends of a range given as LOW-HIGH."""


RAGGED = Range((16, 256))  # lengths of ragged requests


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


Rounds = Annotated[int, whole("--num-iters", "-r", panel=WORK, help="Rounds that are timed.")]
Json = Annotated[bool, option("--json", panel=OUTPUT, help="Print a JSON object with every sample, and no table.")]


def numbers_option(*names: str, help: str, **settings: Any) -> Any:
    """A flag whose value is several whole numbers."""
    return option(*names, panel=WORK, parser=numbers, metavar="N[,N...]", help=help, **settings)


def range_option(*names: str, help: str) -> Any:
    """A flag whose value is a range of lengths."""
    said = f"{help}, drawn from this range; {RAGGED[0]}-{RAGGED[1]} by default."  # typer would show it in parentheses
    return option(*names, panel=WORK, parser=number_range, metavar="LOW-HIGH", help=said, show_default=False)


@dataclass(frozen=True, kw_only=True)
class SourceFlags:
    """The model that is timed."""

    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A checkpoint folder, demo, the id of a model on Hugging Face, or random:NAME.",
            show_default=False,
        ),
    ] = None
    random: Annotated[
        str | None,
        option(
            "--random",
            panel=MODEL,
            metavar="MODEL",
            help=f"Random weights instead of a CHECKPOINT: {', '.join(named_configs())}, or the path of a config.json.",
        ),
    ] = None

    revision: Revision = None

    def source(self, *, quiet: bool = False) -> str:
        """What `moejax.load` takes. A download shows its progress, unless `quiet`.

        Raises:
            ValueError: for a checkpoint and random weights, or neither, and for a revision of anything but a model on
                Hugging Face.
        """
        if self.random is None and self.checkpoint is not None:
            return pinned(self.checkpoint, self.revision, quiet=quiet)
        if self.random is not None and self.checkpoint is None:
            return pinned(f"{RANDOM}{self.random}", self.revision, quiet=quiet)
        raise ValueError(
            f"give a CHECKPOINT or --random MODEL, got {'both' if self.checkpoint else 'neither'}; MODEL is one of "
            f"{', '.join(named_configs())}, or the path of a config.json"
        )


@dataclass(frozen=True, kw_only=True)
class WorkFlags:
    """Batches of equal prompts."""

    batch_size: Annotated[Numbers, numbers_option("--batch-size", "-b", help="Prompts at a time.")] = Numbers((1,))
    input_len: Annotated[Numbers, numbers_option("--input-len", "-p", help="Tokens of each prompt.")] = Numbers((128,))
    output_len: Annotated[Numbers, numbers_option("--output-len", "-n", help="Tokens generated after each prompt.")] = (
        Numbers((64,))
    )
    prefill_len: Annotated[
        Numbers,
        numbers_option(
            "--prefill-len", help="Also time the prefill of one prompt of N tokens by itself.", show_default=False
        ),
    ] = Numbers()
