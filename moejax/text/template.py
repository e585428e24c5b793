"""A chat template: code from whoever made the checkpoint, in Jinja's immutable sandbox.

The sandbox keeps it from Python's internals and from changing what it is given. It runs in a process of its own
(`moejax.text.limited`), which bounds its time and memory.
"""

import datetime
import json
from collections.abc import Callable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_TEXT = 1 << 24  # characters of a rendered chat: 4 million tokens


class _Refused(jinja2.TemplateError):
    """Raised by the template itself: the messages are not what this model was trained on."""


def prepare(setup: dict[str, Any]) -> tuple[None, Callable[[dict[str, Any]], str]]:
    """The template `setup["template"]` as a function of its variables.

    Raises:
      ValueError: it is not valid, or the function is called with what it cannot render.
    """
    template = _explained(lambda: _compiled(setup["template"]))
    return None, lambda variables: _explained(lambda: _rendered(template, variables))


def _compiled(source: str) -> jinja2.Template:
    environment = _ChatEnvironment()
    tree = _PublicNames().visit(environment.parse(source)).set_environment(environment)
    code = environment.compile(tree)
    return environment.template_class.from_code(environment, code, environment.make_globals(None))


def _rendered(template: jinja2.Template, variables: dict[str, Any]) -> str:
    parts, size = [], 0
    for part in template.generate(**variables):
        parts.append(part)
        size += len(part)
        if size > MAX_TEXT:
            raise ValueError(f"the chat template makes a text of more than {MAX_TEXT} characters and was stopped")
    return "".join(parts)


def _explained(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except jinja2.TemplateSyntaxError as error:
        reason = f"is not valid Jinja, line {error.lineno}: {_one_line(error.message or error)}"
    except SecurityError as error:
        reason = f"does something unsafe and was stopped: {_one_line(error)}"
    except _Refused as error:
        reason = f"refuses these messages: {_one_line(error)}"
    except MemoryError:
        raise
    except Exception as error:  # Jinja passes on whatever an expression raises: TypeError, RecursionError, KeyError...
        reason = f"failed with {type(error).__name__}: {_one_line(error)}"
    raise ValueError(f"the chat template {reason}")


def _one_line(error: Exception | str) -> str:
    """The message on one line and without control characters: a template chooses it, a terminal may show it."""
    return "".join(c if c.isprintable() else " " for c in str(error)[:300])


class _ChatEnvironment(ImmutableSandboxedEnvironment):
    """The immutable sandbox with transformers' settings and functions."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        self.filters |= {"tojson": _tojson}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.globals |= {"dict": _dict, "namespace": _namespace}
        del self.globals["lipsum"]  # text without end

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        # Jinja would print an empty string and complain only where the value is used further.
        raise SecurityError(f"it reads {attribute!r} of a {type(obj).__name__}")


class _PublicNames(NodeTransformer):
    """Refuses to store what Python may call by itself."""

    def visit_NSRef(self, node: nodes.NSRef) -> nodes.NSRef:
        _check_public(node.attr)
        return node


class _Generation(Extension):
    """`{% generation %}` marks the assistant's own words for training; a prompt only needs what is inside."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it stores an attribute {name!r}, whose name begins with an underscore")


def _namespace(*args: Any, **kwargs: Any) -> Namespace:
    attributes = dict(*args, **kwargs)
    for name in attributes:
        _check_public(name)
    return Namespace(attributes)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    # The class itself would hand out `dict.update`, in which the sandbox does not see a mutation.
    return dict(*args, **kwargs)


def _raise_exception(message: object) -> None:
    raise _Refused(str(message))


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
