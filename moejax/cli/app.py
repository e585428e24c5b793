"""The table of commands, and how each run of one ends."""

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

import moejax
from moejax.cli import errors
from moejax.cli.bench import bench
from moejax.cli.console import StdoutClosed
from moejax.cli.convert import EXAMPLES as CONVERT_EXAMPLES
from moejax.cli.convert import convert
from moejax.cli.decode import EXAMPLES as DECODE_EXAMPLES
from moejax.cli.decode import decode
from moejax.cli.help import SETTINGS, Command, examples
from moejax.cli.info import EXAMPLES as INFO_EXAMPLES
from moejax.cli.info import info
from moejax.cli.mesh import mesh_app
from moejax.cli.serve import EXAMPLES as SERVE_EXAMPLES
from moejax.cli.serve import serve
from moejax.cli.verify import EXAMPLES as VERIFY_EXAMPLES
from moejax.cli.verify import verify

app = typer.Typer(name="moejax", add_completion=False, rich_markup_mode=None, context_settings=SETTINGS)
# With a line for the list of commands: of a longer description typer would show the beginning.
for _function, _line, _examples in (
    (decode, "Continue prompts with a checkpoint.", DECODE_EXAMPLES),
    (serve, "Serve a checkpoint by OpenAI's API.", SERVE_EXAMPLES),
    (convert, "Convert a checkpoint to Orbax, or back.", CONVERT_EXAMPLES),
    (verify, "Compare meshes with one device, or a checkpoint with transformers.", VERIFY_EXAMPLES),
    (info, "Show what is in a checkpoint and whether it fits here.", INFO_EXAMPLES),
):
    app.command(cls=Command, short_help=_line, epilog=examples(*_examples), context_settings=SETTINGS)(_function)
app.add_typer(bench, name="bench", short_help="Measure speed, alone and beside other systems.")
app.add_typer(mesh_app, name="mesh", short_help="Rank the splits of a model over devices, or show one.")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moejax {moejax.__version__}")
        raise typer.Exit


@app.callback(epilog=examples(DECODE_EXAMPLES[0], CONVERT_EXAMPLES[0], INFO_EXAMPLES[0], "moejax decode --help"))
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Decode Mixtral-family mixture-of-experts models in JAX."""


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; returns the exit code. Every error is one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows "?" instead of failing
    debug = "--debug" in arguments
    try:
        return get_command(app).main(list(arguments) or ["--help"], prog_name="moejax", standalone_mode=False) or 0
    except StdoutClosed:
        # The interpreter flushes stdout once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return errors.report(error, debug=debug)
