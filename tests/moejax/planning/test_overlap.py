"""What micro-batches hide, cost, and where they pay."""

import pytest

from moejax import MeshRow, compare_meshes
from moejax._sharding.collectives import Collective
from moejax.planning.overlap import divided, exposed, hidden
from tests.messages import refuses


def row(micro_batches: int, batch_size: int = 8, input_len: int = 4096, context: int = 4096) -> MeshRow:
    rows = compare_meshes(
        *("mixtral-8x7b", 8, "h200"),
        batch_size=batch_size,
        input_len=input_len,
        context=context,
        micro_batches=micro_batches,
        dispatch="replicated",
    )
    return next(row for row in rows if row.label.startswith("tensor=8"))


def test_all_but_the_last_piece_is_hidden_as_far_as_the_next_takes() -> None:
    assert hidden({"attention": 4.0, "moe": 8.0}, {"attention": 1.0, "moe": 80.0}, 4) == pytest.approx(0.75 * 9)
    assert exposed(2.0, 5.0, 6.0) == (1.0, 0.0) and exposed(2.0, 5.0, 4.0) == (2.0, 1.0) and exposed(1, 1, 9) == (0, 0)


def test_collectives_of_layers_come_in_pieces() -> None:
    one, other = (
        Collective(kind="all-reduce", axes=("tensor",), elements=101, dtype="bfloat16", in_loop=False, scope=scope)
        for scope in ("moe", "embed")
    )
    assert [each.elements for each in divided([one, other], 2)] == [51, 51, 101]


def test_two_pieces_shorten_a_prefill_and_not_a_step() -> None:
    once, twice, many = row(1), row(2), row(8)
    assert once.prefill and twice.prefill and many.prefill and once.decode and twice.decode
    assert twice.prefill.seconds < once.prefill.seconds < many.prefill.seconds
    assert twice.prefill.bandwidth_seconds < once.prefill.bandwidth_seconds
    assert twice.decode.seconds == once.decode.seconds  # too few rows to divide
    large = [row(count, batch_size=512, input_len=64, context=512).decode for count in (1, 2)]
    assert large[0] and large[1] and large[1].expert_bytes > 1.9 * large[0].expert_bytes


def test_there_is_nothing_to_hide_on_one_device() -> None:
    seconds = [
        compare_meshes("demo", 1, "h200", batch_size=8, input_len=512, micro_batches=count)[0].ttft_seconds
        for count in (1, 4)
    ]
    assert seconds[0] == seconds[1]


def test_a_number_of_pieces_that_is_none() -> None:
    with refuses(ValueError, "micro_batches", "1 to 8", "0"):
        compare_meshes("demo", 1, "h200", micro_batches=0)
