"""What is timed: shapes of requests, and the random prompts of each. Imports no JAX."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

FIRST_TOKEN = 3  # ids below are special in most vocabularies: padding, beginning, end

# Of one batch, or of all requests of a round. They are held as lists of Python integers: 2 GB at most.
MAX_PROMPTS, MAX_PROMPT_TOKENS = 100_000, 50_000_000


@dataclass(frozen=True, kw_only=True)
class Work:
    """`batch_size` prompts of `input_len` tokens, each continued by `output_len` tokens.

    Raises:
        ValueError: for sizes below 1.
    """

    batch_size: int
    input_len: int
    output_len: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "input_len", "output_len"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")

    @property
    def prefill_name(self) -> str:
        """As llama-bench calls it: pp512 is a prompt of 512 tokens."""
        return f"pp{self.input_len}"

    @property
    def decode_name(self) -> str:
        """As llama-bench calls it: tg128 @ d512 generates 128 tokens after 512."""
        return f"tg{self.output_len} @ d{self.input_len}"

    @property
    def prefill_tokens(self) -> int:
        return self.batch_size * self.input_len

    @property
    def decode_tokens(self) -> int:
        """Tokens after each row's first, which the prefill brings."""
        return self.batch_size * (self.output_len - 1)

    def prompts(self, vocab_size: int, seed: int = 0) -> list[list[int]]:
        """Random token ids, the same for the same sizes and seed."""
        rng = np.random.default_rng([seed, self.batch_size, self.input_len])
        lowest = min(FIRST_TOKEN, vocab_size - 1)
        return rng.integers(lowest, vocab_size, (self.batch_size, self.input_len)).tolist()


@dataclass(frozen=True, kw_only=True)
class RaggedRequest:
    """One of many ragged requests."""

    prompt: list[int]
    output_len: int


def cross_product(batch_sizes: Sequence[int], input_lens: Sequence[int], output_lens: Sequence[int]) -> list[Work]:
    """Every combination, the batch size changing fastest."""
    return [
        Work(batch_size=batch, input_len=before, output_len=after)
        for before, after, batch in product(input_lens, output_lens, batch_sizes)
    ]


def check_amount(name: str, count: int, input_len: int) -> None:
    """Raises ValueError before they are made when `count` prompts, asked for with `name`, of `input_len` tokens at most
    would not fit memory.
    """
    if count > MAX_PROMPTS:
        raise ValueError(f"{name} must be at most {MAX_PROMPTS:,}, got {count}; use fewer")
    if count * input_len > MAX_PROMPT_TOKENS:
        raise ValueError(
            f"{name} must leave at most {MAX_PROMPT_TOKENS:,} prompt tokens in all, got {count} x {input_len}; use "
            "fewer or shorter prompts"
        )


def ragged_requests(
    count: int, input_lens: tuple[int, int], output_lens: tuple[int, int], vocab_size: int, seed: int = 0
) -> list[RaggedRequest]:
    """`count` requests whose lengths are drawn evenly from the ranges given, ends included.

    Raises:
        ValueError: for no request or too many, or a range that is empty or begins below 1.
    """
    if count < 1:
        raise ValueError(f"--num-prompts must be at least 1, got {count}")
    for flag, (low, high) in (("--input-len", input_lens), ("--output-len", output_lens)):
        if not 1 <= low <= high:
            raise ValueError(f"{flag} must be a range LOW-HIGH from 1 on, got {low}-{high}")
    check_amount("--num-prompts", count, input_lens[1])
    rng = np.random.default_rng([seed, count])
    lowest = min(FIRST_TOKEN, vocab_size - 1)
    return [
        RaggedRequest(
            prompt=rng.integers(lowest, vocab_size, rng.integers(input_lens[0], input_lens[1] + 1)).tolist(),
            output_len=int(rng.integers(output_lens[0], output_lens[1] + 1)),
        )
        for _ in range(count)
    ]
