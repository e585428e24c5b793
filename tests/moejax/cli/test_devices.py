"""Which devices a command asks for: what does not go together is told before JAX starts."""

import pytest

from moejax.cli.devices import Processes, split_address
from tests.moejax.cli.conftest import Call

P = ("decode", "demo", "--prompt", "x")
ADDRESS, COUNT, ID = ("--coordinator-address", "localhost:9876"), ("--num-processes", "2"), ("--process-id", "0")

MISTAKES: list[tuple[tuple[str, ...], str]] = [
    (("--simulate-devices", "0"), "--simulate-devices must be at least 1, got 0"),
    (("--simulate-devices", "many"), "--simulate-devices must be a whole number, got 'many'"),
    (
        ID,
        "--process-id also needs --coordinator-address and --num-processes: it is for one of several processes",
    ),
    ((*COUNT, *ID), "--num-processes also needs --coordinator-address: it is for one of several processes"),
    (
        ADDRESS,
        "--coordinator-address also needs --num-processes and --process-id: it is for one of several processes",
    ),
    (("--distributed", *COUNT), "--distributed asks the cluster; it cannot be used with --num-processes"),
    ((*ADDRESS, "--num-processes", "0", *ID), "--num-processes must be at least 1, got 0"),
    (
        (*ADDRESS, *COUNT, "--process-id", "2"),
        "--process-id must be from 0 to 1 with --num-processes 2, got 2",
    ),
    (
        (*ADDRESS, *COUNT, "--process-id", "-1"),
        "--process-id must be from 0 to 1 with --num-processes 2, got -1",
    ),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES, ids=[" ".join(flags) for flags, _ in MISTAKES])
def test_mistake_is_told_in_one_line(call: Call, flags: tuple[str, ...], message: str) -> None:
    outcome = call(*P, *flags)
    assert (outcome.status, outcome.out, outcome.err) == (2, "", f"error: {message}\n")


def test_devices_are_simulated_on_cpus_only(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert call(*P, "--simulate-devices", "2").err == (
        "error: --simulate-devices simulates CPU devices, but JAX_PLATFORMS='cuda'; set it to cpu\n"
    )


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.1:9876", ("10.0.0.1", 9876)),
        ("node-1.cluster:1", ("node-1.cluster", 1)),
        ("[fe80::1]:65535", ("fe80::1", 65535)),
    ],
)
def test_address_is_split(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":9876", "[]:9876", "host:0", "host:65536", "fe80::1:9876", "h:²"]
)
def test_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="^--coordinator-address must be HOST:PORT, as in "):
        Processes(coordinator_address=address, num_processes=2, process_id=0)


def test_one_process_is_not_several() -> None:
    assert not Processes().several
    assert Processes(distributed=True).several
    assert Processes(coordinator_address="h:1", num_processes=1, process_id=0).several
