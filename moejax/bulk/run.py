"""Answers the lines of a file, many at a time by the one engine, each as soon as it has ended."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from moejax.bulk.answers import Answers
from moejax.bulk.lines import Line
from moejax.bulk.work import LineWork, PlainForm, plain_error, plain_work
from moejax.decoding.api import Ended, decode_each
from moejax.loading import Model

WINDOW = 1024  # lines that the engine has at a time: it decodes 64 sequences together, and takes the next as one ends


def answer_lines(
    model: Model,
    answers: Answers,
    form: PlainForm,
    *,
    names: Sequence[str],
    on_step: Callable[[int], None],
) -> None:
    """Answers every line that `answers` has none to. A line that fails is answered by an error, and the others go on.

    names: what bodies of OpenAI's form may call the model.  on_step: told how many tokens were generated since.
    """
    pending = (line for line in answers.asked.lines() if line.custom_id not in answers.done)
    while window := list(itertools.islice(pending, WINDOW)):
        _answer_window(model, window, answers, form, names, on_step)


def _answer_window(
    model: Model,
    window: Sequence[Line],
    answers: Answers,
    form: PlainForm,
    names: Sequence[str],
    on_step: Callable[[int], None],
) -> None:
    of_request: dict[int, LineWork] = {}
    missing: dict[int, dict[int, Ended | None]] = {}  # by the identity of the work: how its requests ended
    requests = []
    for line in window:
        work = _prepared(model, line, form, names)
        if not isinstance(work, LineWork):
            answers.write(work)
            on_step(0)
            continue
        numbered = [dataclasses.replace(one, index=len(requests) + at) for at, one in enumerate(work.requests)]
        requests += numbered
        of_request |= {one.index: work for one in numbered}
        missing[id(work)] = {one.index: None for one in numbered}
    for ended in decode_each(model, requests):
        work = of_request.pop(ended.request.index)
        found = missing[id(work)]
        found[ended.request.index] = ended
        whole = [one for one in found.values() if one is not None]
        if len(whole) == len(found):
            answers.write(work.word(whole))
            del missing[id(work)]
        result = ended.result
        on_step(0 if isinstance(result, Exception) else result.stats.generated_tokens)


def _prepared(model: Model, line: Line, form: PlainForm, names: Sequence[str]) -> LineWork | dict[str, Any]:
    """The work of a line, or the error that answers it."""
    if line.kind != "openai":
        try:
            return plain_error(line, line.problem) if line.problem else plain_work(line, model, form)
        except ValueError as error:
            return plain_error(line, str(error))
    from moejax.bulk.openai_lines import openai_work, refused  # here, because it needs what the server needs
    from moejax.serving.errors import ApiError

    try:
        return openai_work(line, model, names)
    except ApiError as error:
        return refused(line, error)
