"""What the engine tells about a request, in the words of OpenAI's API: whole answers and chunks of streams.

Two kinds, completions and chat, which differ in names and in the form of log-probabilities.
"""

import dataclasses
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from moejax.decoding.prompt_reports import prompt_logprobs
from moejax.decoding.results import Logprob, TokenLogprobs
from moejax.serving.jobs import Answerable, Delta
from moejax.serving.token_texts import TokenPlace, TokenTexts

LOWEST_LOGPROB = -9999.0  # stands for minus infinity, which JSON cannot say


@dataclass(kw_only=True)
class ChoiceTokens:
    """What was said so far of one choice.

    texts: the places of its tokens.  length: characters of its text.
    pending: tokens of a chat whose log-probabilities wait for their text, which a stop string may still take back.
    """

    texts: TokenTexts
    length: int = 0
    pending: list[tuple[TokenPlace, int, TokenLogprobs]] = field(default_factory=list)


Job = TypeVar("Job", bound=Answerable)


@dataclass(kw_only=True)
class Answer(Generic[Job]):
    """One answer: a choice for every output of every job.

    chat: of `/v1/chat/completions`, else of `/v1/completions`.  model_name: as it is served.
    jobs: one per prompt; the choices of job i have the indices from i n on.
    dtype: of the model.
    progress: whether chunks say what each token is and when it came.
    """

    chat: bool
    model_name: str
    jobs: Sequence[Job]
    dtype: str
    progress: bool = False
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._choices: dict[int, ChoiceTokens] = {}  # by their indices, from their first tokens on
        self._greeted: set[int] = set()  # choices whose first chunk was sent

    @property
    def takes_long(self) -> bool:
        """Whether putting it into words takes so long that others should not wait for it: every token is spelled."""
        return any(job.request.params.logprobs is not None for job in self.jobs)

    def whole(self, deltas: Sequence[Sequence[Delta]]) -> dict[str, Any]:
        """The answer that is not streamed, from all deltas of each job."""
        choices = []
        for at, job in enumerate(self.jobs):
            for sequence in job.sequences:
                mine = [delta for delta in deltas[at] if delta.output == sequence.output]
                choices.append(self._choice(at, _joined(mine)))
        if self.chat:
            for choice in choices:
                choice["message"] = {"role": "assistant", "content": choice.pop("text"), "refusal": None}
        return {**self._head(stream=False), "choices": choices, "usage": self.usage()}

    def chunk(self, at: int, delta: Delta, *, include_usage: bool) -> dict[str, Any] | None:
        """The chunk for a delta of job `at`; None where it has nothing to say."""
        choice = self._choice(at, delta)
        index, text, logprobs = choice["index"], choice["text"], choice["logprobs"]
        says = text or delta.finish_reason or (logprobs and (logprobs.get("content") or logprobs.get("tokens")))
        if not (says or self.progress):
            return None
        if self.chat:
            first = {} if index in self._greeted else {"role": "assistant"}
            choice["delta"] = {**first, "content": choice.pop("text")}
        self._greeted.add(index)
        chunk = {**self._head(stream=True), "choices": [choice]}
        if include_usage:
            chunk["usage"] = None
        if self.progress:
            chunk["moejax"] = {
                "token_ids": delta.token_ids,
                "texts": delta.texts,
                "time": round(delta.seconds, 6),
                **({} if delta.experts is None else {"routed_experts": delta.experts.tolist()}),
            }
        return chunk

    def last_chunk(self) -> dict[str, Any]:
        """The chunk after all others, for whom asked for usage."""
        return {**self._head(stream=True), "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Tokens of prompts and outputs so far."""
        prompt = sum(len(job.request.prompt) for job in self.jobs)
        output = sum(0 if job.echo is not None and job.echo.alone else job.generated for job in self.jobs)
        return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}

    def _head(self, *, stream: bool) -> dict[str, Any]:
        kind = "text_completion" if not self.chat else "chat.completion.chunk" if stream else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model_name}

    def _choice(self, at: int, delta: Delta) -> dict[str, Any]:
        job = self.jobs[at]
        index = at * len(job.sequences) + delta.output
        if index not in self._choices:
            if job.echo is not None:
                delta = self._with_prompt(job, delta)
            prompt = job.request.prompt if job.echo is None else ()
            skips = job.request.params.skip_special_tokens
            texts = TokenTexts(job.sequences[0].tokenizer, prompt, skip_special_tokens=skips)
            self._choices[index] = ChoiceTokens(texts=texts)
        logprobs = None
        if delta.logprobs is not None:
            best = job.request.params.logprobs or 0
            form = _chat_logprobs if self.chat else _completion_logprobs
            logprobs = form(self._choices[index], best, delta)
        return {
            "index": index,
            "text": delta.text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }

    def _with_prompt(self, job: Answerable, delta: Delta) -> Delta:
        """The first delta of an output with its prompt in front, and without tokens where none were asked for."""
        assert job.echo is not None
        if job.echo.alone:
            delta = dataclasses.replace(
                delta,
                texts=[],
                token_ids=[],
                logprobs=None if delta.logprobs is None else [],
                experts=None,
                finish_reason="length",
                stop_reason=None,
            )
        logprobs = delta.logprobs
        if logprobs is not None:
            entries = prompt_logprobs(job.group, index=job.place, dtype=self.dtype) or []
            logprobs = [*(_first_entry(job) if entry is None else entry for entry in entries), *logprobs]
        return dataclasses.replace(
            delta,
            texts=[job.echo.text, *delta.texts],
            token_ids=[*job.request.prompt, *delta.token_ids],
            logprobs=logprobs,
        )


def _completion_logprobs(choice: ChoiceTokens, best: int, delta: Delta) -> dict[str, Any]:
    found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [] if best else None}
    found["text_offset"] = []
    for token, entry in _chosen(delta):
        names = choice.texts.names(entry)
        found["tokens"].append(names[token])
        # Of the first token of a prompt nothing is known but its text.
        known = entry[token].rank > 0
        found["token_logprobs"].append(_finite(entry[token].logprob) if known else None)
        if best:
            ranked = {names[one]: _finite(entry[one].logprob) for one in _ranked(entry, best, token)}
            found["top_logprobs"].append(ranked if known else None)
        found["text_offset"].append(choice.texts.push(token).start)
    return found


def _chat_logprobs(choice: ChoiceTokens, best: int, delta: Delta) -> dict[str, Any]:
    choice.length += len(delta.text)
    choice.pending += [(choice.texts.push(token), token, entry) for token, entry in _chosen(delta)]
    ended, content = delta.finish_reason is not None, []
    while choice.pending and (ended or choice.pending[0][0].end <= choice.length):
        place, token, entry = choice.pending.pop(0)
        ranked = sorted(entry, key=lambda one: entry[one].rank)[:best]
        content.append(
            {
                **_spelled(entry[token], place.cut(choice.length)),
                "top_logprobs": [_spelled(entry[one], choice.texts.data(one)) for one in ranked],
            }
        )
    return {"content": content, "refusal": None}


def _first_entry(job: Answerable) -> TokenLogprobs:
    """What stands for the first token of a prompt, which no other token predicts: rank 0."""
    token, tokenizer = job.request.prompt[0], job.sequences[0].tokenizer
    text = "" if tokenizer is None else tokenizer.token_text(token)
    return {token: Logprob(logprob=0.0, rank=0, decoded_token=text)}


def _joined(deltas: Sequence[Delta]) -> Delta:
    """All deltas of one output as one."""
    last = deltas[-1]
    return Delta(
        output=last.output,
        texts=[delta.text for delta in deltas],
        token_ids=[token for delta in deltas for token in delta.token_ids],
        logprobs=None if last.logprobs is None else [entry for delta in deltas for entry in delta.logprobs or ()],
        experts=None,
        seconds=last.seconds,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
    )


def _chosen(delta: Delta) -> list[tuple[int, TokenLogprobs]]:
    return list(zip(delta.token_ids, delta.logprobs or (), strict=True))


def _ranked(entry: TokenLogprobs, best: int, token: int) -> list[int]:
    """The best of a place, and the chosen token behind them where it is none of them."""
    ranked = sorted(entry, key=lambda one: entry[one].rank)
    return ranked[:best] if token in ranked[:best] else [*ranked[:best], token]


def _spelled(one: Logprob, data: bytes) -> dict[str, Any]:
    return {"token": one.decoded_token, "logprob": _finite(one.logprob), "bytes": list(data)}


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
