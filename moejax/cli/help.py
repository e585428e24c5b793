"""Commands whose help texts are plain, at most 100 columns wide: flags under headings, examples as they are typed.

And which take no flag twice with two values, of which the parser would drop the first in silence.
"""

from typing import Any

import typer
from typer.core import TyperCommand

# What the parser does with a flag -> what makes it keep every value.
_KEPT = {"store": "append", "store_const": "append_const"}
SETTINGS: dict[str, Any] = {"help_option_names": ["--help", "-h"], "max_content_width": 102}  # typer leaves 2 unused


class Command(TyperCommand):
    """A command that lists each flag under the heading given as its `rich_help_panel`, and takes one value for each."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parser: Any = type(self.make_parser(ctx))(ctx)  # typer exports no name of it
        add = parser.add_option
        parser.add_option = lambda *, action="store", **settings: add(action=_KEPT.get(action, action), **settings)
        for param in self.get_params(ctx):
            param.add_to_parser(parser, ctx)
        given, rest, order = parser.parse_args(args=list(args))
        if any(param.is_eager for param in order):  # --help, whatever else is there
            return super().parse_args(ctx, args)
        if rest:  # said before what is missing, which it may have been meant for
            ctx.fail(f"Got unexpected extra argument{'s' if rest[1:] else ''} ({' '.join(rest)})")
        for param in self.get_params(ctx):
            if param.param_type_name == "option" and not getattr(param, "multiple", False):
                _check_once(ctx, param, given.get(param.name, []))
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        params = self.get_params(ctx)
        arguments = sum(param.param_type_name == "argument" for param in params)
        for param in params:
            if param.param_type_name == "argument":
                sections.setdefault("Argument" if arguments == 1 else "Arguments", []).append(
                    (param.metavar or param.name, getattr(param, "help", ""))
                )
            elif record := param.get_help_record(ctx):
                sections.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(record)
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


def _check_once(ctx: Any, param: Any, values: list[Any]) -> None:
    """Refuses two values; a flag that switches something has True and False for them."""
    different = list(dict.fromkeys(values))
    if len(different) < 2:
        return
    switches = dict(zip((True, False), (param.opts[0], *param.secondary_opts[:1]), strict=False))
    shown = " and ".join(switches[value] if value in switches else repr(value) for value in different)
    *names, last = param.opts
    same = f" ({', '.join(names)} and {last} are one flag)" if names else ""
    raise typer.BadParameter(f"is given more than once, as {shown}{same}; give it once", ctx=ctx, param=param)


def examples(*lines: str) -> str:
    """The end of a help text; the mark in front keeps its lines from being rewrapped."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
