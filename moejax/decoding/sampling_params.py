"""How a request is to be continued, in the vocabulary that vLLM and OpenAI users know. Imports no JAX."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from difflib import get_close_matches
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of one request. The defaults are greedy decoding of at most 128 tokens.

    Attributes:
        max_tokens: most tokens to generate (`max_new_tokens` is accepted as a name for it).
        min_tokens: neither EOS nor a stop ends the text before this many tokens.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: only the k most probable tokens; 0 or -1 is off. Ties with the k-th are kept.
        top_p: only the most probable tokens whose probabilities reach this sum; 1 is off (arXiv:1904.09751).
        min_p: only tokens at least this probable relative to the best; 0 is off (arXiv:2407.01082).
        repetition_penalty: logits of tokens in the prompt or output are divided (positive) or multiplied (negative)
            by it; 1 is off (arXiv:1909.05858).
        presence_penalty: subtracted once from the logits of tokens in the output.
        frequency_penalty: subtracted once per occurrence in the output.
        logit_bias: added to the logits of tokens, by id: -100 to 100, which forbid and enforce a token. Kept as pairs.
        seed: makes sampling reproducible, whatever else is in the batch; None draws one.
        n: outputs per prompt.
        stop: strings that end the text.
        stop_token_ids: tokens that end the text, besides EOS.
        ignore_eos: go on after EOS.
        include_stop_str_in_output: keep the stop string in the text.
        skip_special_tokens: leave special tokens out of the text.
        logprobs: also return the log-probabilities of this many best tokens at each step, and the chosen one's.
        prompt_logprobs: the same for the prompt's tokens.
        return_routed_experts: also return the experts that each token fed to the model was routed to.

    Raises:
        ValueError: for a value out of range or an unknown name, saying what was given and what is expected.
    """

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    seed: int | None = None
    n: int = 1
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    return_routed_experts: bool = False
    max_new_tokens: InitVar[int | None] = None

    def __new__(cls, **given: Any) -> Self:
        check_names(given)
        return super().__new__(cls)

    def __post_init__(self, max_new_tokens: int | None) -> None:
        if max_new_tokens is not None:
            if self.max_tokens not in (128, max_new_tokens):
                raise ValueError(f"got max_tokens={self.max_tokens} and max_new_tokens={max_new_tokens}: give one")
            object.__setattr__(self, "max_tokens", max_new_tokens)
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        object.__setattr__(self, "stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        for name, (low, high) in _WHOLE_RANGES.items():
            _check_number(name, getattr(self, name), low, high, whole=True)
        for name, (low, high) in _REAL_RANGES.items():
            _check_number(name, getattr(self, name), low, high, whole=False)
        if self.top_p == 0:
            raise ValueError("top_p must be greater than 0, got 0; leave it at 1 to switch it off")
        for field in dataclasses.fields(self):
            if field.type is bool and not isinstance(getattr(self, field.name), bool):
                raise ValueError(f"{field.name} must be True or False, got {getattr(self, field.name)!r}")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}")
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n={self.n} greedy outputs would all be the same: set a temperature above 0, or n=1")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0

    @property
    def filtered(self) -> bool:
        """Whether only part of the vocabulary may be sampled."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    @property
    def penalized(self) -> bool:
        """Whether tokens seen before change the logits."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


MAX_BIASES = 300  # of a request, as in OpenAI's API

_WHOLE_RANGES: Mapping[str, tuple[int, int | None]] = {
    "max_tokens": (1, None),
    "min_tokens": (0, None),
    "top_k": (-1, None),
    "n": (1, None),
    "seed": (0, 2**63 - 1),
    "logprobs": (0, None),
    "prompt_logprobs": (0, None),
}
_REAL_RANGES: Mapping[str, tuple[float, float | None]] = {
    "temperature": (0, 1e30),  # float32 holds all of these
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (1e-6, 1e6),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
PARAMETER_NAMES = tuple(field.name for field in dataclasses.fields(SamplingParams))
_FOREIGN_NAMES = {"max_length": "max_tokens", "do_sample": "temperature", "num_return_sequences": "n", "eos": "stop"}


def check_names(given: Mapping[str, object]) -> None:
    """Raises ValueError for a name that is no sampling parameter, with the nearest one that is."""
    for name in given:
        if name not in PARAMETER_NAMES and name != "max_new_tokens":
            near = [_FOREIGN_NAMES[name]] if name in _FOREIGN_NAMES else get_close_matches(name, PARAMETER_NAMES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the parameters are {', '.join(PARAMETER_NAMES)}"
            raise ValueError(f"unknown sampling parameter {name!r}; {hint}")


def override(params: SamplingParams | None, overrides: Mapping[str, Any]) -> SamplingParams:
    """`params`, or the defaults, with `overrides` in place of their fields."""
    check_names(overrides)
    if params is None:
        return SamplingParams(**overrides)
    fields = dict(overrides)
    if (renamed := fields.pop("max_new_tokens", None)) is not None:
        if fields.setdefault("max_tokens", renamed) != renamed:
            raise ValueError(f"got max_tokens={fields['max_tokens']} and max_new_tokens={renamed}: give one")
    return dataclasses.replace(params, **fields, max_new_tokens=None)


def _check_number(name: str, value: Any, low: float, high: float | None, *, whole: bool) -> None:
    if value is None and name in ("seed", "logprobs", "prompt_logprobs"):
        return
    kinds: tuple[type, ...] = (int,) if whole else (int, float)
    number: Any = value if isinstance(value, kinds) and not isinstance(value, bool) else math.nan
    if not whole and abs(number) > sys.float_info.max:
        number = math.nan
    if not (number == number and low <= number <= (math.inf if high is None else high)):
        kind = "a whole number" if whole else "a number"
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {kind} {bounds}, got {value!r}")


def _strings(name: str, value: object) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not all(isinstance(item, str) and item for item in items):
        raise ValueError(f"{name} must be a non-empty string or a list of such, got {value!r}")
    return tuple(dict.fromkeys(items))


def _biases(value: object) -> tuple[tuple[int, float], ...]:
    """Pairs of a token and its bias, each token once."""
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, Sequence) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"logit_bias must be a dictionary of biases by token id, got {value!r:.80}")
    if len(pairs) > MAX_BIASES:
        raise ValueError(f"logit_bias has {len(pairs)} tokens, the most are {MAX_BIASES}")
    _ids("logit_bias", [token for token, _ in pairs])
    for _, bias in pairs:
        _check_number("logit_bias", bias, -100, 100, whole=False)
    return tuple(dict(pairs).items())


def _ids(name: str, value: object) -> tuple[int, ...]:
    if (
        not isinstance(value, Sequence)
        or isinstance(value, (bytes, bytearray))
        or not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value)
    ):
        raise ValueError(f"{name} must be a list of token ids, got {value!r}")
    return tuple(dict.fromkeys(value))
