from moejax.compiling.machine_code import read_assembled, read_code, width
from tests.messages import refuses
from tests.moejax.compiling import recorded


def test_registers_and_spills() -> None:
    assert (read_assembled(recorded.PTXAS).registers, read_assembled(recorded.PTXAS).spilled) == (72, 0)
    assert read_assembled(recorded.SPILLS).spilled == 16 + 24
    assert read_assembled(f"{recorded.PTXAS}Used 8 barriers, 64 bytes smem").shared == 64
    with refuses(ValueError, "ptxas -v", "fatal"):
        read_assembled("ptxas fatal: unknown")


def test_copies_are_followed_over_turns() -> None:
    code = read_code(recorded.COPIES)
    assert (code.tensor, code.tensor_kind) == (1, "HGMMA")
    assert (code.loaded, code.widths, code.asynchronous) == (32, {16: 2}, 2)
    assert code.instructions == 9
    # Two groups of two copies stay when a turn goes on; its own are the third.
    assert (code.flight, code.flight_mean) == (3 * 32, 3 * 32)


def test_a_dropped_copy_is_less_in_flight() -> None:
    code = read_code(recorded.DROPPED)
    assert (code.asynchronous, code.flight) == (1, 3 * 16)


def test_loads_into_registers_are_on_their_way_until_they_are_read() -> None:
    code = read_code(recorded.REGISTERS)
    assert (code.loaded, code.widths, code.asynchronous) == (40, {16: 2, 8: 1}, 0)
    # 16 + 8 at the first wait, 8 + 16 at the second, the last 16 alone.
    assert (code.flight, code.flight_mean) == (24, round((24 + 24 + 16) / 3))
    assert (code.fused, code.apart, code.local) == (1, 3, 1)


def test_straight_code_is_walked_through_once() -> None:
    straight = recorded.REGISTERS.replace("@!P0 BRA 0x930", "EXIT")
    assert read_code(straight).loaded == 40
    assert read_code(recorded.COPIES.replace("@P1 BRA `(.L_x_0)", "EXIT")).flight == 4 + 32


def test_widths() -> None:
    names = ("LDG.E.128", "LDG.E.64", "LDG.E", "LDG.E.U16", "LDG.E.U8", "LDGSTS.E.BYPASS.128")
    assert [width(name) for name in names] == [16, 8, 4, 2, 1, 16]


def test_a_text_without_instructions_is_refused() -> None:
    with refuses(ValueError, 7, "nvdisasm"):
        read_code("no code")
