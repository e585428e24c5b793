"""Every failure in one line on stderr. `--debug` shows where it came from."""

import re
import sys
import traceback
from difflib import get_close_matches
from typing import Any

import typer

from moejax.cli import console
from moejax.cli.foreign_flags import (
    NOT_HERE,
    OURS,
    PLANNING_NOT_HERE,
    PLANNING_OURS,
    SERVING_NOT_HERE,
    SERVING_OURS,
)
from moejax.cli.processes import PEER_ENDED, PEER_GONE
from moejax.decoding.sampling_params import PARAMETER_NAMES

FAILED = 2

# The root of what Typer raises for a wrong command line; it exports only this one of its kinds.
UsageError: type[Any] = typer.BadParameter.__mro__[1]

# Arguments of the Python API that are flags here; the library's messages name them as arguments.
_LOAD_NAMES = ("base_url", "num_prompts", "input_len", "output_len", "range_ratio", "request_rate", "max_concurrency")
_MESH_NAMES = ("batch_size", "usable_fraction", "context", "devices", "ttft", "tpot", "software", "skew", "times")
_MESH_NAMES += ("efficiency",)
_OTHER_NAMES = ("max_seq_len", "mesh", "dtype", "expert_backend", "shard_size", "workers", "timeout", "baseline")
_OTHER_NAMES += ("revision",)
_ALL_NAMES = (*PARAMETER_NAMES, *_LOAD_NAMES, *_MESH_NAMES, *_OTHER_NAMES)
_FLAGS = {name: f"--{name.replace('_', '-')}" for name in _ALL_NAMES}
_FLAGS["stop_token_ids"] = "--stop-token-id"
# `stop` and `n` are also words: such a name is an argument only where a value or "must" follows.
# What some commands take without a flag, and others with one.
_NAMED = {"--model": ("the model", "demo"), "--mesh": ("the mesh", "data=1,expert=4,tensor=2")}
# The flag by which a command is known -> what others' flags are called there, and why some do not exist.
_TABLES = {
    "--prompt": (OURS, NOT_HERE),
    "--served-model-name": (SERVING_OURS, SERVING_NOT_HERE),
    "--hardware": (PLANNING_OURS, PLANNING_NOT_HERE),
}
_WORDS = "|".join(name for name in _FLAGS if "_" not in name)
_NAMES = "|".join(name for name in _FLAGS if "_" in name)
_ARGUMENT = re.compile(rf"(?<![\w-])(?:({_NAMES}|{_WORDS})=([^\s,;:)]+)|({_NAMES})\b|({_WORDS})(?= must\b))")


def report(error: Exception, *, debug: bool) -> int:
    """Says on stderr what went wrong; returns the exit code."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    console.error(" ".join(line.strip() for line in describe(error).splitlines()))
    return FAILED


def describe(error: Exception) -> str:
    """One sentence: what was wrong with the command line or its input, and what to do."""
    from moejax._convert import CheckpointError  # here, because it imports numpy, which takes as long as all the rest

    if isinstance(error, UsageError):
        return _describe_usage(error)
    if isinstance(error, CheckpointError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    if isinstance(error, ValueError | FloatingPointError):
        return with_flags(str(error))
    if PEER_GONE.search(str(error)):
        return PEER_ENDED
    # Nothing of ours says it in one line: most often the device is out of memory, or JAX_PLATFORMS names one it lacks.
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line or 'no message'}; run it again with --debug to see where"


def with_flags(message: str) -> str:
    """A message of the Python API in the words of the command line: `max_tokens=9` becomes `--max-tokens 9`."""

    def flag(found: re.Match[str]) -> str:
        name, value, *alone = found.groups()
        return f"{_FLAGS[name]} {value}" if name else _FLAGS[alone[0] or alone[1]]

    return _ARGUMENT.sub(flag, message)


def _describe_usage(error: Any) -> str:
    """Typer's usage errors, with what was meant where that is known."""
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    if error.ctx is None:  # a flag of ours whose value is missing, or that takes none
        return message
    command, path = error.ctx.command, error.ctx.command_path
    flags = [flag for param in command.get_params(error.ctx) for flag in (*param.opts, *param.secondary_opts)]
    flags = [flag for flag in flags if flag.startswith("-")]
    given, param = getattr(error, "option_name", None), getattr(error, "param", None)
    if given is not None and given not in flags:
        return unknown_flag(given, flags, path)
    if param is not None and error.message:
        return f"{param.opts[0]} {error.message}"
    if param is not None:
        what = param.metavar or param.opts[0]
        needed = f"{param.opts[0]} {what}" if param.opts[0].startswith("-") else f"a {what}"
        return f"{path} needs {needed}; see {path} --help"
    if commands := getattr(command, "commands", None):
        what, _, hint = message.partition(". ")  # as in: No such command 'inf'. Did you mean 'info'?
        *others, last = commands
        known = f"the commands are {', '.join(others)} and {last}" if others else f"its only command is {last}"
        return f"{what}; {hint[:1].lower()}{hint[1:]} {known.capitalize()}" if hint else f"{what}; {known}"
    if "unexpected extra argument" in message:
        message += _where_arguments_go(flags, message)
    return f"{message}; see {path} --help"


def _where_arguments_go(flags: list[str], message: str) -> str:
    """By which flags that is given which others give without one; `message` ends with what was given, in brackets."""
    if "--prompt" in flags:
        return ': prompts are given with --prompt "TEXT"'
    given = message.rpartition("(")[2].rstrip(")")
    examples = {"--model": given} if given and " " not in given else {}
    named = [
        f"{what} with {flag} {examples.get(flag, example)}" for flag, (what, example) in _NAMED.items() if flag in flags
    ]
    return f": give {', '.join(named)}" if "--model" in flags else ""


def unknown_flag(given: str, flags: list[str], path: str) -> str:
    """What to use instead of `given`, which the command `path` does not have."""
    spelled = given.replace("_", "-")
    if spelled in flags:
        return f"{path} has no {given}; use {spelled}"
    for mark, (ours, not_here) in _TABLES.items():
        if mark not in flags:
            continue
        if spelled in ours:
            return f"{path} has no {given}; use {ours[spelled]}"
        if spelled in not_here:
            return f"{path} has no {given}: {not_here[spelled]}"
    beginnings = [flag for flag in flags if len(given) > 3 and flag.startswith(given)]
    near = beginnings or get_close_matches(given, flags, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else f"see {path} --help"
    return f"{path} has no {given}; {hint}"
