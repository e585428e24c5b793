"""`moejax bench`: the group of commands that measure."""

import typer

from moejax.cli.bench_serve import EXAMPLES as SERVE_EXAMPLES
from moejax.cli.bench_serve import serve
from moejax.cli.help import SETTINGS, Command, examples

EXAMPLES = (SERVE_EXAMPLES[0],)

bench = typer.Typer(
    name="bench",
    rich_markup_mode=None,
    context_settings=SETTINGS,
    epilog=examples(*EXAMPLES),
    add_completion=False,
)
for _function, _line, _examples in ((serve, "Measure a running server under load.", SERVE_EXAMPLES),):
    bench.command(cls=Command, short_help=_line, epilog=examples(*_examples), context_settings=SETTINGS)(_function)


@bench.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    """Measure a server under load."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
