"""Groups of flags: a dataclass declares each flag once, and every command that has them takes it as one parameter."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command for Typer: of a parameter whose type is a dataclass, each field is a flag of its own.

    A field is annotated as a parameter of a command is, with `Annotated[..., typer.Option(...)]`. Called with the
    values of all flags, the groups are made of theirs, so that what `__post_init__` refuses is told first, and the
    command gets them.
    """
    own = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {one.name: one.annotation for one in own if is_dataclass(one.annotation)}
    flags: list[inspect.Parameter] = []
    for one in own:
        if one.name not in groups:
            flags.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = get_type_hints(groups[one.name], include_extras=True)
        flags += [_flag(field, hints[field.name]) for field in fields(groups[one.name])]

    @functools.wraps(command)
    def flat(**values: Any) -> Any:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        return command(**made, **values)

    flat.__signature__ = inspect.Signature(flags)  # pyright: ignore[reportAttributeAccessIssue]: inspect's own protocol
    flat.__annotations__ = {flag.name: flag.annotation for flag in flags}
    return flat


def _flag(field: Field[Any], annotation: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
