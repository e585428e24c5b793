"""Shapes of requests and statistics of samples: what needs no model."""

import statistics

import pytest

from moejax.bench.latency import mean_and_spread, percentiles
from moejax.bench.works import Work, cross_product, ragged_requests
from tests.messages import refuses


def test_cross_product_and_names_as_llama_bench_has_them() -> None:
    works = cross_product((1, 8), (512,), (1, 128))
    assert [(w.batch_size, w.input_len, w.output_len) for w in works] == [
        (1, 512, 1),
        (8, 512, 1),
        (1, 512, 128),
        (8, 512, 128),
    ]
    assert (works[3].prefill_name, works[3].decode_name) == ("pp512", "tg128 @ d512")
    assert (works[3].prefill_tokens, works[3].decode_tokens) == (8 * 512, 8 * 127)


def test_prompts_are_the_same_for_everybody_and_differ_from_row_to_row() -> None:
    work = Work(batch_size=3, input_len=7, output_len=1)
    assert work.prompts(100) == work.prompts(100) != work.prompts(100, seed=1)
    assert len({tuple(row) for row in work.prompts(100)}) == 3
    assert {token for row in work.prompts(6) for token in row} == {3, 4, 5}
    assert work.prompts(1) == [[0] * 7] * 3


def test_ragged_requests_stay_in_their_ranges() -> None:
    requests = ragged_requests(200, (2, 5), (1, 3), 50)
    assert {len(one.prompt) for one in requests} == {2, 3, 4, 5}
    assert {one.output_len for one in requests} == {1, 2, 3}
    assert requests == ragged_requests(200, (2, 5), (1, 3), 50)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ((0, (1, 2), (1, 2)), ("--num-prompts", "1", "got 0")),
        ((1, (3, 2), (1, 2)), ("--input-len", "LOW-HIGH", "1", "got 3-2")),
        ((1, (1, 2), (0, 2)), ("--output-len", "LOW-HIGH", "1", "got 0-2")),
    ],
)
def test_ranges_that_hold_nothing(
    arguments: tuple[int, tuple[int, int], tuple[int, int]], facts: tuple[str, ...]
) -> None:
    with refuses(ValueError, *facts):
        ragged_requests(*arguments, vocab_size=9)


def test_percentiles_and_spread() -> None:
    assert percentiles([3.0, 1.0, 2.0]) == pytest.approx(
        {"10": 1.2, "25": 1.5, "50": 2.0, "75": 2.5, "90": 2.8, "99": 2.98}
    )
    assert mean_and_spread([1.0, 3.0]) == (2.0, statistics.stdev([1, 3]))
    assert mean_and_spread([1.0]) == (1.0, 0.0)
