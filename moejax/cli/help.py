"""Plain help texts, at most 100 columns wide: flags under headings, examples as they are typed."""

from typing import Any

from typer.core import TyperCommand

SETTINGS: dict[str, Any] = {"help_option_names": ["--help", "-h"], "max_content_width": 102}  # typer leaves 2 unused


class Command(TyperCommand):
    """A command that lists each flag under the heading given as its `rich_help_panel`."""

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


def examples(*lines: str) -> str:
    """The end of a help text; the mark in front keeps its lines from being rewrapped."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
