"""Buckets: what attention, prefill and the cache rely on, for every length up to a long context."""

from collections.abc import Callable

import pytest

from moejax.decoding.logprobs import POSITIONS_PER_BLOCK
from moejax.ops.xla.attend import KEY_BLOCK, QUERY_BLOCK
from moejax.runtime import buckets

LENGTHS = [*range(1, 5000), 8191, 8192, 8193, 32767, 32768, 49152, 49153, 65536]
FUNCTIONS: dict[str, Callable[[int], int]] = {
    "prompt": buckets.prompt_bucket,
    "teacher-forced": lambda length: buckets.length_bucket(length, buckets.MIN_PROMPT),
    "cache": lambda length: buckets.length_bucket(length, buckets.MIN_CACHE),
    "batch": buckets.batch_bucket,
    "count": buckets.count_bucket,
}
OF_LENGTHS = ("prompt", "teacher-forced", "cache")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_buckets_hold_grow_and_are_few(name: str) -> None:
    sizes = [FUNCTIONS[name](length) for length in LENGTHS]
    assert all(size >= length for size, length in zip(sizes, LENGTHS, strict=True))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) <= 27  # two per doubling of 16 to 65536, at the most
    # A bucket holds itself: a length that was rounded up is not rounded up again.
    assert [FUNCTIONS[name](size) for size in sizes] == sizes


@pytest.mark.parametrize("name", OF_LENGTHS)
def test_attention_divides_lengths_into_whole_blocks(name: str) -> None:
    """Else its blocks would be the greatest common divisor, down to one token."""
    for size in {FUNCTIONS[name](length) for length in LENGTHS}:
        assert size % QUERY_BLOCK == 0 or QUERY_BLOCK % size == 0
        assert size % KEY_BLOCK == 0 or KEY_BLOCK % size == 0
        assert size % POSITIONS_PER_BLOCK == 0 or size < POSITIONS_PER_BLOCK


@pytest.mark.parametrize("name", OF_LENGTHS)
def test_padding_is_less_than_the_length_itself(name: str) -> None:
    for length in (length for length in LENGTHS if length > buckets.MIN_CACHE):
        size = FUNCTIONS[name](length)
        most = 2 * length if length <= 256 else 1.5 * length
        assert size < most or (name == "prompt" and size < length + buckets.PREFILL_CHUNK)


def test_smallest_buckets() -> None:
    assert buckets.length_bucket(1, 16) == 16
    assert [buckets.length_bucket(n, 64) for n in (64, 65, 128, 129)] == [64, 128, 128, 256]
    assert [buckets.length_bucket(n, 16) for n in (256, 257, 384, 385, 512, 513)] == [256, 384, 384, 512, 512, 768]
    assert [buckets.batch_bucket(n) for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 4, 8]
    assert [buckets.count_bucket(n) for n in (0, 1, 2, 3, 5)] == [0, 1, 2, 4, 8]


def test_prompts_are_fed_in_whole_chunks() -> None:
    for size in {buckets.prompt_bucket(length) for length in LENGTHS}:
        assert size <= buckets.PREFILL_CHUNK or size % buckets.PREFILL_CHUNK == 0
    assert buckets.PREFILL_CHUNK % QUERY_BLOCK == 0
    assert buckets.PREFILL_TOKENS >= buckets.PREFILL_CHUNK


@pytest.mark.parametrize("chunk", [32, 128])
def test_chunks_of_another_size(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(buckets, "PREFILL_CHUNK", chunk)
    for length in LENGTHS:
        size = buckets.prompt_bucket(length)
        assert size >= length
        assert size <= chunk or size % chunk == 0


def test_cache_holds_every_token_that_is_fed() -> None:
    for length in LENGTHS:
        for max_tokens in (1, 2, 63, 64, 1000):
            cache = buckets.length_bucket(length + max_tokens, buckets.MIN_CACHE)
            assert cache >= length + max_tokens
