"""What the engine tells about a request, in the words of OpenAI's API: whole answers and chunks of streams.

Two kinds, completions and chat, which differ in names and in the form of log-probabilities.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from moejax.decoding.results import Logprob, TokenLogprobs
from moejax.serving.jobs import Delta, ServedRequest

LOWEST_LOGPROB = -9999.0  # stands for what JSON cannot say: minus infinity and NaN


@dataclass(kw_only=True)
class Answer:
    """One answer: a choice for every output of every job.

    chat: of `/v1/chat/completions`, else of `/v1/completions`.  model_name: as it is served.
    jobs: one per prompt; the choices of job i have the indices from i n on.
    progress: whether chunks say what each token is and when it came.
    """

    chat: bool
    model_name: str
    jobs: Sequence[ServedRequest]
    progress: bool = False
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._offsets: dict[int, int] = {}  # of the text that log-probabilities are about, by choice
        self._greeted: set[int] = set()  # choices whose first chunk was sent

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
        index, text = choice["index"], choice["text"]
        says = text or delta.finish_reason or choice["logprobs"] is not None or self.progress
        if not says:
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
        output = sum(job.generated for job in self.jobs)
        return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}

    def _head(self, *, stream: bool) -> dict[str, Any]:
        kind = "text_completion" if not self.chat else "chat.completion.chunk" if stream else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model_name}

    def _choice(self, at: int, delta: Delta) -> dict[str, Any]:
        index = at * len(self.jobs[at].sequences) + delta.output
        logprobs = None
        if delta.logprobs is not None:
            best = self.jobs[at].request.params.logprobs or 0
            logprobs = self._chat_logprobs(best, delta) if self.chat else self._completion_logprobs(index, best, delta)
        return {
            "index": index,
            "text": delta.text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }

    def _completion_logprobs(self, index: int, best: int, delta: Delta) -> dict[str, Any]:
        tokens, offsets = [], []
        for token, entry in _chosen(delta):
            tokens.append(entry[token].decoded_token)
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(tokens[-1])
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(entry[token].logprob) for token, entry in _chosen(delta)],
            "top_logprobs": [
                {one.decoded_token: _finite(one.logprob) for one in _ranked(entry, best, token)}
                for token, entry in _chosen(delta)
            ]
            if best
            else None,
            "text_offset": offsets,
        }

    def _chat_logprobs(self, best: int, delta: Delta) -> dict[str, Any]:
        content = []
        for token, entry in _chosen(delta):
            ranked = sorted(entry.values(), key=lambda one: one.rank)[:best]
            content.append({**_spelled(entry[token]), "top_logprobs": [_spelled(one) for one in ranked]})
        return {"content": content, "refusal": None}


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


def _ranked(entry: TokenLogprobs, best: int, token: int) -> list[Logprob]:
    """The best of a place, and the chosen token behind them where it is none of them."""
    ranked = sorted(entry.values(), key=lambda one: one.rank)
    return ranked[:best] if entry[token] in ranked[:best] else [*ranked[:best], entry[token]]


def _spelled(one: Logprob) -> dict[str, Any]:
    return {
        "token": one.decoded_token,
        "logprob": _finite(one.logprob),
        "bytes": list(one.decoded_token.encode("utf-8", "replace")),
    }


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB) if logprob == logprob else LOWEST_LOGPROB
