"""`moejax decode CHECKPOINT --chat`: a conversation, typed line by line on a terminal or piped."""

import importlib.util
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from moejax.cli import INTERRUPTED, console, errors
from moejax.cli.prompts import decoded, is_unicode
from moejax.decoding.sampling_params import SamplingParams

if TYPE_CHECKING:
    from moejax.loading import Model

COMMANDS = {
    "/exit": "ends the conversation, as Ctrl-D does",
    "/reset": "forgets what was said and begins anew",
    "/help": "lists these",
}
_COMMAND = re.compile(r"/[A-Za-z]+")
_PROMPT = "> "


@dataclass(kw_only=True)
class Talk:
    """A conversation: the model, how it answers, and what was said so far, the system's message aside."""

    model: "Model"
    params: SamplingParams
    system: str | None
    quiet: bool
    said: list[dict[str, str]] = field(default_factory=list)


def check_flags(params: SamplingParams, **others: bool) -> None:
    """Raises ValueError for what a conversation cannot do. others: flags that were given, by their names."""
    wrong = {
        **others,
        "n": params.n > 1,
        "logprobs": params.logprobs is not None,
        "prompt_logprobs": params.prompt_logprobs is not None,
        "return_routed_experts": params.return_routed_experts,
        "no_skip_special_tokens": not params.skip_special_tokens,
    }
    if name := next((name for name, given in wrong.items() if given), None):
        flag = f"--{name.replace('_', '-')}"
        raise ValueError(
            f"--chat without --prompt is a conversation, which takes no {flag}: add --prompt, or leave it out"
        )


def piped_lines() -> Iterator[str] | None:
    """What is piped, line by line as it comes, empty lines left out; None where somebody types on a terminal.

    Raises:
        ValueError: for no line. It waits for the first, so that this is told before a model is loaded.
    """
    if sys.stdin.isatty():
        return None
    lines = (decoded(raw, "a line of standard input") for raw in iter(sys.stdin.buffer.readline, b""))
    spoken = (line for line in lines if line.strip())
    first = next(spoken, None)
    if first is None:
        raise ValueError(
            "--chat without --prompt reads messages from standard input, a line each, and there is none; "
            'pipe them, or give --prompt "TEXT"'
        )

    def all_lines() -> Iterator[str]:
        yield first
        yield from spoken

    return all_lines()


def converse(talk: Talk, piped: Iterator[str] | None) -> int:
    """Answers each line until there is none. Returns the exit status.

    Raises:
        ValueError: for a piped line that cannot be answered; on a terminal that is told, and the conversation goes on.
    """
    if piped is None:
        return _on_terminal(talk)
    for line in piped:
        if not respond(talk, line, lambda: False):
            break
    return 0


def respond(talk: Talk, line: str, interrupted: Callable[[], bool]) -> bool:
    """Obeys or answers a line; returns whether the conversation goes on.

    interrupted: asked after each token, whether the answer should end there.

    Raises:
        ValueError: for an unknown command, or a message that cannot be answered; it is then as if it was never said.
        FloatingPointError: where the model's numbers overflow.
    """
    word = line.strip()
    if word == "/exit":
        return False
    if word == "/reset":
        talk.said.clear()
        if not talk.quiet:
            console.remark("what was said is forgotten")
    elif word == "/help":
        for name, meaning in COMMANDS.items():
            console.remark(f"{name}  {meaning}")
        console.remark("Ctrl-C ends an answer; what there is of it counts as said")
    elif _COMMAND.fullmatch(word):
        raise ValueError(f"there is no command {word}; there are {', '.join(COMMANDS)}")
    elif word:
        _answer(talk, line, interrupted)
    return True


def _answer(talk: Talk, line: str, interrupted: Callable[[], bool]) -> None:
    """Prints what the model answers as it comes; both messages then count as said."""
    import moejax

    if not is_unicode(line):
        raise ValueError(f"the line is not UTF-8 text ({line!r:.80}); set the terminal to UTF-8")
    system = [] if talk.system is None else [{"role": "system", "content": talk.system}]
    asked = {"role": "user", "content": line}
    prompt = moejax.encode_chat(talk.model, [*system, *talk.said, asked])
    limit = talk.model.max_seq_len
    room = limit - len(prompt)
    if room < max(1, talk.params.min_tokens):
        raise ValueError(
            f"the context is full: the conversation has {len(prompt):,} tokens with this message, of at most {limit:,} "
            "for it and the answer; /reset begins anew"
        )
    params = replace(talk.params, max_tokens=min(talk.params.max_tokens, room))
    text, reason, events = "", None, moejax.decode(talk.model, [prompt], params, stream=True)
    with closing(events):  # pyright: ignore[reportArgumentType]: a generator
        with console.progress("reading what was said", quiet=talk.quiet):
            event = next(events)
        while True:
            console.write(event.text)
            text, reason = text + event.text, event.finish_reason
            if reason is not None or interrupted():
                break
            event = next(events)
    console.write("\n")
    talk.said += [asked, {"role": "assistant", "content": text}]
    if reason == "length" and not talk.quiet:
        if params.max_tokens < talk.params.max_tokens:
            console.warn(f"the context of {limit:,} tokens is full, the answer is cut there; /reset begins anew")
        else:
            console.warn(f"the answer is cut at --max-tokens {params.max_tokens:,}")


@dataclass(kw_only=True)
class _Keyboard:
    """What Ctrl-C does, and did. reading: whether a line is being typed.  pressed: during the answer."""

    reading: bool = False
    typed: str = ""
    pressed: bool = False


def _on_terminal(talk: Talk) -> int:
    if not talk.quiet:
        console.remark(f"a line is a message; {', '.join(COMMANDS)}, and Ctrl-C ends an answer")
    with _interrupts_are_ours() as keyboard:
        while True:
            try:
                line = _typed(keyboard)
            except EOFError:
                console.write("\n")
                return 0
            except KeyboardInterrupt:
                console.write("\n")
                if keyboard.typed:  # as in a shell: the line is dropped, and only an empty one ends it
                    continue
                return INTERRUPTED
            except UnicodeDecodeError:
                console.error("the line is not UTF-8 text; set the terminal to UTF-8")
                continue
            keyboard.pressed = False
            try:
                if not respond(talk, line, lambda: keyboard.pressed):
                    return 0
            except (ValueError, FloatingPointError) as error:
                console.error(errors.describe(error))


def _typed(keyboard: _Keyboard) -> str:
    """The next line, edited with readline where Python has it.

    Raises:
        EOFError: for Ctrl-D.
        KeyboardInterrupt: for Ctrl-C; `keyboard.typed` is then what was in the line.
    """
    keyboard.typed, keyboard.reading = "", True
    try:
        if sys.stdout.isatty():
            return input(_PROMPT)
        sys.stderr.write(_PROMPT)  # stdout has nothing but answers
        sys.stderr.flush()
        if not (line := sys.stdin.readline()):
            raise EOFError
        return line.removesuffix("\n")
    finally:
        keyboard.reading = False


@contextmanager
def _interrupts_are_ours() -> Iterator[_Keyboard]:
    """While the block runs, Ctrl-C does not end the process (`moejax.cli`): it is the block's to say what it means."""
    keyboard = _Keyboard()
    line_buffer: Callable[[], str] = lambda: ""  # noqa: E731
    if importlib.util.find_spec("readline"):
        import readline

        line_buffer = readline.get_line_buffer

    def pressed(*_: object) -> None:
        if keyboard.reading:
            keyboard.typed = line_buffer()
            raise KeyboardInterrupt
        keyboard.pressed = True

    watched, handler = signal.set_wakeup_fd(-1), signal.signal(signal.SIGINT, pressed)
    try:
        yield keyboard
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.set_wakeup_fd(watched)
