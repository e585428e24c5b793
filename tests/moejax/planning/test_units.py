"""Numbers as people read them."""

import pytest

from moejax.planning.units import BYTES, SECONDS, amount, common_unit, number, pair


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.4e-21, "1e-21"),
        (0.0042, "0.004"),
        (0.3521, "0.352"),
        (1.644, "1.64"),
        (9.996, "10.0"),
        (15.06, "15.1"),
        (206.4, "206"),
        (7051.2, "7,051"),
        (99_999, "99,999"),
        (129_950, "130k"),
        (1.2345e6, "1.23M"),
        (9.996e8, "1G"),
        (3e14, "300T"),
        (8.7e17, "9e+17"),
    ],
)
def test_three_digits_in_six_characters(value: float, text: str) -> None:
    assert number(value) == text and len(text) <= 6


def test_an_amount_has_the_unit_in_which_it_is_read() -> None:
    assert [amount(size, BYTES) for size in (93.8e9, 0.268e9, 67.1e6, 26_214, 24, 0)] == [
        "93.8 GB", "0.268 GB", "67.1 MB", "26.2 kB", "24 bytes", "0 GB",
    ]  # fmt: skip
    assert [amount(seconds, SECONDS) for seconds in (12.5, 2.5, 2.35e-3, 26e-6)] == ["12.5 s", "2,500 ms", "2.35 ms",
                                                                                    "26.0 us"]  # fmt: skip


def test_a_column_has_the_unit_of_its_smallest_number() -> None:
    assert common_unit((2.0, 0.3e-3), SECONDS).name == "ms" and common_unit((2.0, 0.3e-4, 0), SECONDS).name == "us"
    assert common_unit((), BYTES).name == common_unit((0.0,), BYTES).name == "GB"


def test_two_numbers_can_be_told_apart() -> None:
    assert pair(0.5, 1.14) == ("0.50", "1.14")
    assert pair(23.49e9, 24.42e9, BYTES) == ("23.5", "24.4 GB")
    assert pair(23.49e9, 23.52e9, BYTES) == ("23.49", "23.52 GB")
    assert pair(64_443.2, 64_443.9) == ("64,443", "64,444")
    assert pair(64_443.2, 64_443.31) == ("64,443.2", "64,443.3")
    assert pair(0.108e9, 0.126e9, BYTES) == ("0.108", "0.126 GB")
    assert pair(0, 32.48e-6, SECONDS) == ("0", "32.5 us")
    assert pair(1e-5, 9e-5, SECONDS) == ("10.0", "90.0 us")
    assert pair(3.41e-18, 4.49e-18, SECONDS) == ("3.41e-09", "4.49e-09 ns")


def test_numbers_far_apart_have_units_of_their_own() -> None:
    assert pair(1.6e-9, 419e-6, SECONDS) == ("1.60 ns", "0.419 ms")
    assert pair(0.5e-3, 1.5e-3, SECONDS) == ("0.50", "1.50 ms")
