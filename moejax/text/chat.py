"""Chat messages to a prompt, through the checkpoint's own Jinja template.

A template is code from whoever made the checkpoint, so it runs in Jinja's immutable sandbox: no Python internals, no
changes to what it is given. Its steps and the size of what it builds are bounded wherever Jinja lets them be
intercepted: loops, calls, filters, operators, joined text. That ends accidents and the usual bombs. It is no limit on
memory: a service that takes templates from strangers also needs limits on its process.
"""

import datetime
import functools
import json
import re
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import do_format
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from moejax.text.tokenizer import Tokenizer

Message = Mapping[str, Any]

MAX_TEMPLATE = 1 << 20  # characters; the longest published templates have about 20,000
MAX_SIZE = 1 << 24  # characters or items of anything that a template builds; 4 million tokens of text
MAX_STEPS = 1 << 20  # loop iterations, calls, filters and operators of one rendering; about a second
MAX_BITS = 1 << 12  # of an integer


class _Refused(jinja2.TemplateError):
    """Raised by the template itself: the messages are not what this model was trained on."""


class _TooMuch(jinja2.TemplateError):
    """A bound of this module was reached."""


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """The token ids of a chat. Templates write BOS themselves; a checkpoint that wants it gets it once in any case.

    Args:
      tokenizer: of the checkpoint, with its chat template.
      messages: as `render_chat` takes them.
      add_generation_prompt: whether the prompt ends with the beginning of the assistant's answer.
      template_kwargs: further variables for the template, as `render_chat` takes them.

    Raises:
      ValueError: there is no chat template, or `render_chat` or `Tokenizer.encode` raises.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "this checkpoint has no chat template (neither chat_template.jinja nor chat_template in"
            " tokenizer_config.json), so it is probably no chat model: give the text as a plain prompt"
        )
    return tokenizer.encode(
        render_chat(
            tokenizer.chat_template,
            messages,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            add_generation_prompt=add_generation_prompt,
            template_kwargs=template_kwargs,
        )
    )


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str | None,
    eos_token: str | None,
    add_generation_prompt: bool = True,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The text of a chat, as transformers' `apply_chat_template` renders it.

    Args:
      template: Jinja source.
      messages: mappings with the strings `role` and `content`; further keys are passed on if they are JSON, and left
        out where they are None. An assistant's `content` may be None or missing: it is then empty or, beside
        `tool_calls`, left out. The role `developer` is `system` for a template that does not know it.
      bos_token: text of the begin-of-sequence token, which most templates write, or None.
      eos_token: text of the end-of-sequence token, or None.
      add_generation_prompt: whether the text ends with the beginning of the assistant's answer.
      template_kwargs: further variables of JSON values, such as `reasoning_effort` or `enable_thinking`. A template
        that does not ask for one ignores it.

    Raises:
      ValueError: a message or a variable has the wrong form; the template is not valid, refuses the messages (roles
        that do not alternate, say), reaches for Python internals, or does more work than any chat needs.
    """
    names = {"bos_token": bos_token, "eos_token": eos_token}
    ours = {
        "messages": _plain_messages(template, messages),
        "add_generation_prompt": add_generation_prompt,
        "tools": None,  # templates ask `tools is not none`: undefined would mean that there are some
        "documents": None,
        **{name: token for name, token in names.items() if token is not None},
    }
    variables = _plain_variables(template_kwargs or {}, ours.keys() | names.keys()) | ours
    try:
        return _render(template, variables)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"the chat template is not valid Jinja, line {error.lineno}: {_one_line(error.message or error)}"
        ) from error
    except SecurityError as error:
        raise ValueError(f"the chat template does something unsafe and was stopped: {_one_line(error)}") from error
    except _Refused as error:
        raise ValueError(f"the chat template refuses these messages: {_one_line(error)}") from error
    except _TooMuch as error:
        raise ValueError(
            f"the chat template does more than a chat needs and was stopped: {_one_line(error)}"
        ) from error
    except Exception as error:  # Jinja passes on whatever an expression raises: TypeError, RecursionError, KeyError...
        raise ValueError(f"the chat template failed with {type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: Exception | str) -> str:
    """The message on one line and without control characters: a template chooses it, a terminal may show it."""
    return "".join(c if c.isprintable() else " " for c in str(error))[:300]


def _plain_messages(template: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A copy of nothing but JSON values: no method of a caller's object is in a template's reach."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(f"expected a list of at least one message with role and content, got {messages!r:.80}")
    plain = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {index}: expected a mapping with role and content, got {message!r:.80}")
        # As transformers does: templates ask whether a key is there, and would print None.
        fields = {key: value for key, value in message.items() if value is not None}
        wanted = ["role", "content"]
        if fields.get("role") == "assistant" and "content" not in fields:
            if fields.get("tool_calls"):
                wanted.remove("content")
            else:
                fields["content"] = ""
        for key in wanted:
            if not isinstance(fields.get(key), str):
                got = repr(message[key]) if key in message else f"only the keys {list(message)!r}"
                raise ValueError(f"message {index}: expected a string for {key!r}, got {got:.80}")
        if fields["role"] == "developer" and "developer" not in template:
            fields["role"] = "system"
        plain.append(fields)
    return _json(plain, "messages")


def _plain_variables(variables: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """A copy of the caller's variables for a template, of nothing but JSON values."""
    for name in variables:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"template_kwargs: expected names of variables, got {name!r:.80}")
        if name in taken:
            raise ValueError(f"template_kwargs: {name!r} has a value already, which cannot be replaced; leave it out")
    return _json(dict(variables), "template_kwargs")


def _json(value: Any, what: str) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} may hold JSON values only: {error}") from error


def _render(template: str, variables: dict[str, Any]) -> str:
    if len(template) > MAX_TEMPLATE:
        raise _TooMuch(f"its source has {len(template)} characters, the limit is {MAX_TEMPLATE}")
    environment = _ChatEnvironment()
    tree = _Bounds().visit(environment.parse(template)).set_environment(environment)
    code = environment.compile(tree)
    compiled = environment.template_class.from_code(environment, code, environment.make_globals(None))
    return environment.join(compiled.generate(**variables))


# --- the sandbox ---

_ITEMS, _JOIN = "bounded items", "bounded join"  # with a space, so that no template can name these filters
_WIDENING = {"center", "ljust", "rjust", "zfill", "expandtabs", "indent"}  # methods and filters that take a width
_WIDE_FIELD = re.compile(r"%(\(\w*\))?[-+ #.\d]*?(\d{5}|\*)")  # "%99999d", "%*d"
_WIDE_SPEC = re.compile(r"\d{5}|\{")  # what follows the colon in "{:>99999}", "{:{width}}"


class _ChatEnvironment(ImmutableSandboxedEnvironment):
    """The immutable sandbox with transformers' settings and functions, and with bounds. Good for one rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        self.steps = 0
        self.concat = self.join  # puts the output of macros and block assignments together
        filters = self.filters | {"tojson": _tojson, "format": _format}
        self.filters = {name: self.bounded(name, function) for name, function in filters.items()}
        self.filters |= {_ITEMS: self.items, _JOIN: self.join}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.globals |= {"dict": _dict, "namespace": _namespace}
        del self.globals["lipsum"]  # text without end

    def count(self, size: int = 0) -> None:
        """Counts a step that handles `size` characters or items."""
        if size > MAX_SIZE:
            raise _TooMuch(f"it builds something of size {size}, the limit is {MAX_SIZE}")
        self.steps += 1 + (max(size, 0) >> 10)
        if self.steps > MAX_STEPS:
            raise _TooMuch(f"it takes more than {MAX_STEPS} steps")

    def items(self, iterable: Iterable[Any]) -> Iterator[Any]:
        for item in iterable:
            self.count()
            yield item

    def join(self, parts: Iterable[Any]) -> str:
        texts, size = [], 0
        for part in parts:
            texts.append(str(part))
            size += len(texts[-1])
            self.count(size if size > MAX_SIZE else 0)
        return "".join(texts)

    def bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose operand, widths and result are bounded."""

        @functools.wraps(function)  # keeps Jinja's marks for functions that take the context
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.count(_size(args[0]))
            if name in _WIDENING:
                self.check_widths((*args[1:], *kwargs.values()))
            result = function(*args, **kwargs)
            self.count(_size(result))
            return result

        return wrapper

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        self.count(_size(owner))
        if isinstance(owner, str):
            if method.__name__ in ("format", "format_map"):
                specs = " ".join(spec for _, _, spec, _ in string.Formatter().parse(owner) if spec)
                _check_fields(_WIDE_SPEC, specs)
            if method.__name__ in _WIDENING:
                self.check_widths((*args, *kwargs.values()))
        return super().call(context, function, *args, **kwargs)

    def check_widths(self, arguments: Iterable[Any]) -> None:
        for width in arguments:
            self.count(width if isinstance(width, int) else 0)

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        # Jinja would print an empty string and complain only where the value is used further.
        raise SecurityError(f"it reads {attribute!r} of a {type(obj).__name__}")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_fields(_WIDE_FIELD, left)
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise _TooMuch(f"it computes an integer of about {bits} bits, the limit is {MAX_BITS}")
        elif operator == "*" and isinstance(right, int):
            self.count(_size(left) * right)
        elif operator == "*" and isinstance(left, int):
            self.count(left * _size(right))
        self.count(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)


class _Bounds(NodeTransformer):
    """Rewrites a template so that its loops and joined text are counted."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        if node.recursive:
            raise jinja2.TemplateSyntaxError("recursive loops are not supported", node.lineno)
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, _ITEMS, [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), _JOIN, [], [], None, None, lineno=node.lineno)

    def visit_NSRef(self, node: nodes.NSRef) -> nodes.NSRef:
        _check_public(node.attr)
        return node


class _Generation(Extension):
    """`{% generation %}` marks the assistant's own words for training; a prompt only needs what is inside."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict | range) else 0


def _check_fields(pattern: re.Pattern[str], form: str) -> None:
    if field := pattern.search(form.replace("%%", "")):
        raise _TooMuch(f"it formats a field of great or computed width, {field[0]!r:.80}")


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


def _format(form: str, *args: Any, **kwargs: Any) -> str:
    _check_fields(_WIDE_FIELD, form)
    return do_format(form, *args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
