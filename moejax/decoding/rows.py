"""One sequence being generated, on the host: its tokens, its text, and why it ended."""

from dataclasses import dataclass, field

import numpy as np

from moejax.decoding.logprobs import TokenScores
from moejax.decoding.requests import Request
from moejax.decoding.results import DecodeEvent, Logprob, Output, TokenLogprobs
from moejax.text.stream import TextStream
from moejax.text.tokenizer import Tokenizer


@dataclass(kw_only=True, eq=False)
class Row:
    """Output `output` of `request`, growing by `push`."""

    request: Request
    output: int
    tokenizer: Tokenizer | None
    eos_token_ids: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    experts: list[np.ndarray] = field(default_factory=list)  # of every token fed, each [tokens, L, A]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    _text: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        params = self.request.params
        self._stream = TextStream(
            self.tokenizer,
            self.request.prompt,
            stops=tuple(params.stop),
            include_stop=params.include_stop_str_in_output,
            skip_special_tokens=params.skip_special_tokens,
        )

    def push(self, token: int, scores: TokenScores | None) -> DecodeEvent:
        """Takes the next token; `finish_reason` is set when it is the last one."""
        params = self.request.params
        self.tokens.append(token)
        logprob = None
        if scores is not None and params.logprobs is not None:
            logprob = token_logprobs(self.tokenizer, token, scores, params.logprobs)
            self.logprobs.append(logprob)
        text = ""
        if token in self.request.stop_ids:
            self.finish_reason = "stop"
            self.stop_reason = None if token in self.eos_token_ids and not params.ignore_eos else token
            if params.include_stop_str_in_output:
                text = self._stream.push(token, check_stop=False).text
        else:
            delta = self._stream.push(token, check_stop=len(self.tokens) >= params.min_tokens)
            text = delta.text
            if delta.stop is not None:
                self.finish_reason, self.stop_reason = "stop", delta.stop
            elif len(self.tokens) == params.max_tokens:
                self.finish_reason = "length"
        if self.finish_reason is not None:
            text += self._stream.finish()
        self._text.append(text)
        return DecodeEvent(
            index=self.request.index,
            output=self.output,
            text=text,
            token_id=token,
            logprob=logprob,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            stats=None,
        )

    def result(self) -> Output:
        """The finished output."""
        assert self.finish_reason is not None, "the row is still being generated"
        wants_logprobs = self.request.params.logprobs is not None
        fed = len(self.request.prompt) + len(self.tokens) - 1
        return Output(
            index=self.output,
            text="".join(self._text),
            token_ids=self.tokens,
            cumulative_logprob=(
                sum(entry[token].logprob for entry, token in zip(self.logprobs, self.tokens, strict=True))
                if wants_logprobs
                else None
            ),
            logprobs=self.logprobs if wants_logprobs else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            routed_experts=(np.concatenate(self.experts)[:fed] if self.request.params.return_routed_experts else None),
        )


def token_logprobs(tokenizer: Tokenizer | None, token: int, scores: TokenScores, best: int) -> TokenLogprobs:
    """The `best` candidates of one place and the token that is there, from host arrays without leading axes."""

    def entry(token_id: int, logprob: float, rank: int) -> Logprob:
        text = "" if tokenizer is None else tokenizer.token_text(token_id)
        return Logprob(logprob=logprob, rank=rank, decoded_token=text)

    candidates = zip(scores.best_ids[:best], scores.best_logprobs[:best], strict=True)
    found = {int(i): entry(int(i), float(logprob), rank) for rank, (i, logprob) in enumerate(candidates, start=1)}
    return found | {token: entry(token, float(scores.logprob), int(scores.rank))} if token not in found else found
