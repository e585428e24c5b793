"""Sequences being generated, on the host: their tokens, their text, and why they ended."""

from dataclasses import dataclass, field

import numpy as np

from moejax.decoding.logprobs import TokenScores, scores_at
from moejax.decoding.outputs import NOT_FINITE, PromptReport
from moejax.decoding.requests import ModelFacts, Request
from moejax.decoding.results import DecodeEvent, Logprob, Output, TokenLogprobs
from moejax.text.stream import TextStream
from moejax.text.tokenizer import Tokenizer


@dataclass(kw_only=True, eq=False)
class Sequence:
    """Output `output` of `request`, growing by `push` until it ends, or fails: others go on.

    failed: logits were not finite.  error: what `push` raised.
    """

    request: Request
    output: int
    tokenizer: Tokenizer | None
    eos_token_ids: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    experts: list[np.ndarray] = field(default_factory=list)  # of the pass behind each token, [L, A]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    failed: bool = False
    error: Exception | None = None
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

    @property
    def ended(self) -> bool:
        return self.failed or self.error is not None or self.finish_reason is not None

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
            delta = self._stream.push_last(token, shown=params.include_stop_str_in_output)
            text = delta.text
            if delta.stop is not None:
                self.stop_reason = delta.stop
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

    def result(self, prompt_experts: np.ndarray | None) -> Output:
        """The finished output; `prompt_experts` [tokens, L, A] are those of the prompt, where they were asked for."""
        assert self.finish_reason is not None, "the sequence is still being generated"
        wants_logprobs = self.request.params.logprobs is not None
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
            routed_experts=(
                None if prompt_experts is None else np.concatenate([prompt_experts[:-1], np.stack(self.experts)])
            ),
        )


@dataclass(kw_only=True, eq=False)
class SequenceGroup:
    """Sequences of one request that get their slots at the same time.

    slots: where they are, once they have got them.
    prompt_reports: what was reported of the prompt, as host arrays [T, ...], part after part.
    """

    request: Request
    sequences: list[Sequence]
    slots: list[int] = field(default_factory=list)
    prompt_reports: list[PromptReport] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return all(one.ended for one in self.sequences)

    @property
    def generated(self) -> int:
        """Tokens of all sequences."""
        return sum(len(one.tokens) for one in self.sequences)


@dataclass(kw_only=True)
class NewTokens:
    """What one call added to a sequence: an event per token.

    experts: int16 [tokens, L, A], those that the forward pass behind each token chose; None where not asked for.
    """

    group: SequenceGroup
    sequence: Sequence
    events: list[DecodeEvent]
    experts: np.ndarray | None


def make_sequences(model: ModelFacts, request: Request) -> list[Sequence]:
    """The n outputs of a request, before their first tokens."""
    return [
        Sequence(request=request, output=output, tokenizer=model.tokenizer, eos_token_ids=model.eos_token_ids)
        for output in range(request.params.n)
    ]


def push_tokens(
    group: SequenceGroup,
    sequence: Sequence,
    tokens: np.ndarray,
    scores: TokenScores | None,
    experts: np.ndarray | None,
) -> NewTokens | None:
    """Gives a sequence its next tokens (int [steps], as in `StepOutput`); None if there were none and it did not fail.

    Tokens after its end are dropped. `scores`, `experts` [steps, L, A]: of the same steps, on the host.
    """
    params, events = sequence.request.params, []
    for step, token in enumerate(tokens.tolist()):
        sequence.failed |= token == NOT_FINITE and not sequence.ended
        if token < 0 or sequence.ended:
            break
        one = None if scores is None or params.logprobs is None else scores_at(scores, step)
        events.append(sequence.push(token, one))
    if not events and not sequence.failed:
        return None
    chosen = experts[: len(events)] if params.return_routed_experts and experts is not None else None
    if chosen is not None:
        sequence.experts.extend(chosen)
    return NewTokens(group=group, sequence=sequence, events=events, experts=chosen)


def token_logprobs(tokenizer: Tokenizer | None, token: int, scores: TokenScores, best: int) -> TokenLogprobs:
    """The `best` candidates of one place and the token that is there, from host arrays without leading axes."""

    def entry(token_id: int, logprob: float, rank: int) -> Logprob:
        text = "" if tokenizer is None else tokenizer.token_text(token_id)
        return Logprob(logprob=logprob, rank=rank, decoded_token=text)

    candidates = zip(scores.best_ids[:best], scores.best_logprobs[:best], strict=True)
    found = {int(i): entry(int(i), float(logprob), rank) for rank, (i, logprob) in enumerate(candidates, start=1)}
    return found | {token: entry(token, float(scores.logprob), int(scores.rank))} if token not in found else found
