"""What a line asks of the engine, and what is written when it has ended."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moejax.bulk.lines import Line
from moejax.decoding.api import Ended
from moejax.decoding.requests import ModelFacts, Request, make_requests
from moejax.decoding.results import DecodeResult
from moejax.decoding.sampling_params import SamplingParams, override


@dataclass(frozen=True, kw_only=True)
class LineWork:
    """The requests of a line. word: from how they ended, in their order, the line that answers it."""

    requests: Sequence[Request]
    word: Callable[[Sequence[Ended]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class PlainForm:
    """How plain lines are read and answered.

    params: the sampling parameters of lines that say nothing else.
    encode: the token ids of a prompt that is text.  describe: a result as JSON values.
    """

    params: SamplingParams
    encode: Callable[[str], list[int]]
    describe: Callable[[DecodeResult], dict[str, Any]]


def plain_work(line: Line, model: ModelFacts, form: PlainForm) -> LineWork:
    """The work of a plain line.

    Raises:
        ValueError: for a prompt or parameter that cannot be served.
    """
    fields = {name: value for name, value in line.value.items() if name not in ("custom_id", "prompt")}
    given = line.value["prompt"]
    if not isinstance(given, str | list) or not given:
        raise ValueError(f"prompt must be a text or a list of token ids, and not empty, got {given!r:.40}")
    params = override(form.params, fields)
    prompt = form.encode(given) if isinstance(given, str) else given
    requests = make_requests(model, [prompt], params, {})

    def word(ended: Sequence[Ended]) -> dict[str, Any]:
        result = ended[0].result
        if isinstance(result, Exception):
            return plain_error(line, str(result))
        return {"custom_id": line.custom_id, "prompt": given, **form.describe(result), "error": None}

    return LineWork(requests=requests, word=word)


def plain_error(line: Line, message: str) -> dict[str, Any]:
    """The answer to a line that cannot be answered."""
    found: Mapping[str, Any] = {"prompt": line.value["prompt"]} if "prompt" in line.value else {}
    return {"custom_id": line.custom_id, **found, "error": {"message": message}}
