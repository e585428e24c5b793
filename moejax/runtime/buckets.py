"""Sizes of compiled programs. Every shape at the jit boundary comes from here, so that few programs serve all calls."""

MIN_PROMPT = 16
MIN_CACHE = 64
PREFILL_CHUNK = 2048  # tokens of one prompt that one call feeds; longer prompts take several
PREFILL_TOKENS = 8192  # tokens of all prompts in one call
MAX_SEQUENCES = 64  # sequences that `moejax.decode` decodes at a time; more wait for a slot
MAX_SERVED_SEQUENCES = 1024  # that a server may be told to decode at a time
STEPS_PER_CALL = 64  # most tokens per sequence that one call of the decode loop generates


def length_bucket(length: int, smallest: int) -> int:
    """The least bucket that holds `length`: powers of two, and from 256 on 1.5 times them, so multiples of 128."""
    bucket = smallest
    while bucket < length:
        bucket *= 2
    three_quarters = bucket // 4 * 3
    return three_quarters if bucket >= 512 and three_quarters >= length else bucket


def batch_bucket(sequences: int, parts: int = 1) -> int:
    """The least power of two that holds `sequences`, rounded up to what divides into `parts` equal parts."""
    bucket = 1
    while bucket < sequences:
        bucket *= 2
    return -(-bucket // parts) * parts


def count_bucket(count: int) -> int:
    """The least of 0, 1, 2, 4, 8, ... that holds `count`: for numbers of stop ids and of log-probabilities."""
    return 0 if count == 0 else batch_bucket(count)


def prompt_bucket(length: int) -> int:
    """The cache length for prompts of up to `length` tokens: past PREFILL_CHUNK, a multiple of it."""
    bucket = length_bucket(length, MIN_PROMPT)
    return bucket if bucket <= PREFILL_CHUNK else -(-bucket // PREFILL_CHUNK) * PREFILL_CHUNK


def prompts_per_call(width: int) -> int:
    """How many prompts one call feeds at most, `width` tokens of each: a batch bucket, since padding counts."""
    return 1 << (max(1, PREFILL_TOKENS // width).bit_length() - 1)
