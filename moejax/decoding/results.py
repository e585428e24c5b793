"""What decoding returns. Imports no JAX."""

from dataclasses import dataclass

import numpy as np

SHOWN_TEXT, SHOWN_OUTPUTS = 60, 3  # characters and outputs that a repr shows


@dataclass(frozen=True, kw_only=True)
class Logprob:
    """One candidate for a place in the text.

    logprob: natural logarithm of its probability, from the raw logits (before penalties and temperature).
    rank: 1 for the most probable token of the vocabulary.
    decoded_token: its text ("" for a model without tokenizer).
    """

    logprob: float
    rank: int
    decoded_token: str


TokenLogprobs = dict[int, Logprob]  # token id -> Logprob: the k best, and the token that is there


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What one `decode` call did for one prompt; times are in seconds, without compilation.

    The prompts of a call share the running batch and its time, so their times cannot be added up.

    prompt_tokens: tokens of this prompt.
    padded_rows: slots of the running batch that no output of the call could take: padding of the batch's size.
    device_rows: rows (token and expert) that the experts of each device of the mesh computed for the whole call so far,
        all layers together, in the order of the mesh: what shows a load imbalance.
    expert_rows: rows that each expert of each layer computed for the whole call so far, [L][E], all devices together.
    generated_tokens: over the prompt's n outputs.
    ttft_seconds: from the call to this prompt's first token; waiting for a slot is part of it.
    prefill_seconds: what the call spent on feeding prompts until this prompt's first token, that token included.
    decode_seconds: the call's decode steps from this prompt's first token to its last.
    decode_tokens_per_second: this prompt's later tokens divided by `decode_seconds`.
    call_decode_seconds: all decode steps of the call so far.
    compile_seconds: compiling or loading compiled programs; in none of the others.
    """

    prompt_tokens: int
    padded_rows: int
    device_rows: tuple[int, ...]
    expert_rows: tuple[tuple[int, ...], ...]
    generated_tokens: int
    ttft_seconds: float
    prefill_seconds: float
    decode_seconds: float
    decode_tokens_per_second: float
    call_decode_seconds: float
    compile_seconds: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Output:
    """One continuation of a prompt.

    logprobs: one dictionary per token, or None where they were not asked for.
    cumulative_logprob: sum of the tokens' log-probabilities; None without `logprobs`.
    finish_reason: "stop" (EOS, a stop token or a stop string) or "length" (max_tokens).
    stop_reason: the stop string or stop token id; None for EOS (unless it
        was ignored and named as a stop token) and for "length".
    routed_experts: int16 [tokens fed, L, A], prompt first; the last generated token was never fed. None unless asked.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[TokenLogprobs] | None
    finish_reason: str
    stop_reason: str | int | None
    routed_experts: np.ndarray | None

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= SHOWN_TEXT else f"{self.text[:SHOWN_TEXT]}..."
        why = "" if self.stop_reason is None else f", stop_reason {self.stop_reason!r}"
        return f"<Output {self.index}: {text!r}, {len(self.token_ids)} tokens, {self.finish_reason}{why}>"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DecodeResult:
    """One prompt's continuations. The shortcuts are those of the first output."""

    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobs | None] | None
    outputs: list[Output]
    stats: Stats

    def __repr__(self) -> str:
        outputs = ", ".join(map(repr, self.outputs[:SHOWN_OUTPUTS]))
        more = f", and {len(self.outputs) - SHOWN_OUTPUTS} more" if len(self.outputs) > SHOWN_OUTPUTS else ""
        return f"<DecodeResult of {len(self.prompt_token_ids)} prompt tokens: {outputs}{more}>"

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def logprobs(self) -> list[TokenLogprobs] | None:
        return self.outputs[0].logprobs

    @property
    def finish_reason(self) -> str:
        return self.outputs[0].finish_reason

    @property
    def stop_reason(self) -> str | int | None:
        return self.outputs[0].stop_reason

    @property
    def routed_experts(self) -> np.ndarray | None:
        return self.outputs[0].routed_experts


@dataclass(frozen=True, kw_only=True)
class DecodeEvent:
    """One step of a stream.

    index: the prompt.  output: which of its n outputs.
    text: new text; may be empty while a character or a possible stop string is incomplete.
    token_id: the new token; None in a last event that only carries text held back until then.
    logprob: the token's log-probabilities, if asked for.
    finish_reason, stop_reason, stats: as in `Output` and `DecodeResult`, in an output's last event; None before.
    """

    index: int
    output: int
    text: str
    token_id: int | None
    logprob: TokenLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    stats: Stats | None
