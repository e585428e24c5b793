"""Block sizes: powers of two that fit the GPU, at the shapes of real models."""

import pytest

from moejax.ops.triton import blocks
from moejax.ops.triton.few_tokens import MOST_TOKENS
from moejax.runtime.platform import A100, H100, SHARED_MEMORY_KIB, Device, shared_memory_bytes, tracing_for

# D F of Mixtral 8x7B and 8x22B, whole and split over 8 devices; a tiny one; one that is no power of two.
SHAPES = [(4096, 14336), (6144, 16384), (4096, 1792), (8, 12), (100, 300)]
TOKENS = [1, 2, 16, 17, MOST_TOKENS]
RESERVED = 1024  # of a multiprocessor's shared memory, for each program it runs
PER_MULTIPROCESSOR = {(8, 0): 164, (9, 0): 228}  # KiB

shapes = pytest.mark.parametrize(("d", "f"), SHAPES)


def power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@shapes
@pytest.mark.parametrize("capability", SHARED_MEMORY_KIB)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_products_fit_the_shared_memory(d: int, f: int, capability: tuple[int, int], itemsize: int) -> None:
    with tracing_for(Device(platform="gpu", kind="some GPU", capability=capability)):
        limit = shared_memory_bytes()
    assert limit == 1024 * SHARED_MEMORY_KIB[capability]
    for matrices, out, contracted in ((2, f, d), (1, d, f)):
        chosen = [blocks.few_tokens_block(t, contracted, itemsize, matrices, limit) for t in TOKENS]
        chosen += [blocks.grouped_block(h, out, contracted, itemsize, matrices, limit) for h in (16, 64, 128)]
        for block in chosen:
            assert block.shared_memory_bytes <= limit, block
            assert block.stages >= 2
            assert all(map(power_of_two, (block.rows, block.out, block.contracted, block.warps)))


@pytest.mark.parametrize("device", [H100, A100])
def test_two_decode_programs_share_a_multiprocessor(device: Device) -> None:
    assert device.capability is not None
    with tracing_for(device):
        limit = shared_memory_bytes()
    for tokens in (2, 8, 16, 32):
        for matrices, contracted in ((2, 4096), (1, 14336)):
            block = blocks.few_tokens_block(tokens, contracted, 2, matrices, limit)
            together = 2 * (block.shared_memory_bytes + RESERVED)
            assert together <= 1024 * PER_MULTIPROCESSOR[device.capability], block


def test_every_token_is_in_the_tile() -> None:
    for tokens in range(1, MOST_TOKENS + 1):
        assert blocks.few_tokens_block(tokens, 4096, 2, 2, 227 * 1024).rows >= tokens


def test_an_unknown_gpu_gets_the_smallest_shared_memory() -> None:
    with tracing_for(Device(platform="gpu", kind="a later GPU", capability=(13, 7))):
        assert shared_memory_bytes() == 99 * 1024


@pytest.mark.parametrize(("tokens", "num_experts", "programs"), [(1, 8, 1), (64, 8, 1), (256, 8, 1), (257, 8, 2)])
def test_few_tokens_route_in_one_program(tokens: int, num_experts: int, programs: int) -> None:
    block = blocks.route_block(tokens, num_experts)
    assert -(-tokens // block.tokens) == programs
    assert power_of_two(block.tokens) and power_of_two(block.experts) and block.experts >= num_experts


def test_sums_are_split_until_there_are_enough_programs() -> None:
    assert blocks.down_splits(programs=64 * 4, steps=112) == 4  # batch 2 of Mixtral 8x7B
    assert blocks.down_splits(programs=64 * 8, steps=112) == 2  # batch 4 and more
    assert blocks.down_splits(programs=1, steps=1) == 1  # nothing to split
    assert blocks.down_splits(programs=10_000, steps=112) == 1


@pytest.mark.parametrize(("rows_per_expert", "block"), [(0, 16), (16, 16), (17, 64), (95, 64), (96, 128), (1024, 128)])
def test_rows_of_a_block_follow_the_rows_of_an_expert(rows_per_expert: int, block: int) -> None:
    assert blocks.grouped_rows(rows_per_expert) == block
