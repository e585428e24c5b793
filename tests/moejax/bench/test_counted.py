"""The closed forms of bytes and FLOPs: against the published size of Mixtral, and against each other."""

import dataclasses

import numpy as np
import pytest

from moejax.bench.counted import decode_steps, head_flops, mean, prefill_flops, token_flops
from moejax.families.config import NAMED_CONFIGS

MIXTRAL = NAMED_CONFIGS["mixtral-8x7b"]
GB = 10**9


def routed(batch: int, experts: int) -> np.ndarray:
    """One step in which `batch` tokens choose `experts` different experts in every layer."""
    chosen = np.arange(batch * 2).reshape(batch, 1, 1, 2) % experts
    return np.broadcast_to(chosen, (batch, 1, MIXTRAL.num_layers, 2))


@pytest.mark.parametrize(("batch", "experts", "gigabytes"), [(1, 2, 25.5), (32, 8, 93.1)])
def test_a_step_of_mixtral_reads_what_its_weights_weigh(batch: int, experts: int, gigabytes: float) -> None:
    """In bfloat16, without the rows of the embedding table that are not looked up (0.26 GB)."""
    (step,) = decode_steps(MIXTRAL, 0, routed(batch, experts), 2)
    assert round(step.weight_bytes / GB, 1) == gigabytes


def test_weights_read_are_the_active_parameters_without_the_unread_embedding() -> None:
    (step,) = decode_steps(MIXTRAL, 0, routed(1, 2), 2)
    unread = (MIXTRAL.vocab_size - 1) * MIXTRAL.embed_dim
    assert step.weight_bytes == 2 * (MIXTRAL.num_active_parameters - unread)


def test_cache_grows_with_the_position_up_to_the_window() -> None:
    def cache(position: int, window: int | None) -> int:
        config = dataclasses.replace(MIXTRAL, sliding_window=window)
        return decode_steps(config, position, routed(2, 4), 2)[0].cache_bytes

    assert cache(0, None) == 2 * 128 * 1024
    assert cache(999, None) == 1000 * cache(0, None)
    assert cache(999, 10) == 10 * cache(0, None)


def test_a_tokens_flops_are_two_for_each_parameter_that_it_meets_and_its_attention() -> None:
    norms = MIXTRAL.embed_dim * (2 * MIXTRAL.num_layers + 1)
    products = MIXTRAL.num_active_parameters - MIXTRAL.vocab_size * MIXTRAL.embed_dim - norms
    attention = 4 * MIXTRAL.num_layers * MIXTRAL.num_heads * MIXTRAL.head_dim
    assert token_flops(MIXTRAL, 0) + head_flops(MIXTRAL) == 2 * products + attention
    assert token_flops(MIXTRAL, 7) - token_flops(MIXTRAL, 0) == 7 * attention


def test_a_prefill_is_its_tokens_and_one_row_of_logits_per_prompt() -> None:
    tokens = token_flops(MIXTRAL, 0) + token_flops(MIXTRAL, 1)
    assert prefill_flops(MIXTRAL, [2]) == tokens + head_flops(MIXTRAL)
    assert prefill_flops(MIXTRAL, [2, 2]) == 2 * prefill_flops(MIXTRAL, [2])


def test_mean_of_steps() -> None:
    steps = [*decode_steps(MIXTRAL, 0, routed(1, 2), 2), *decode_steps(MIXTRAL, 2, routed(1, 2), 2)]
    assert mean(steps).cache_bytes == 2 * 128 * 1024
    assert mean([]).bytes == 0
