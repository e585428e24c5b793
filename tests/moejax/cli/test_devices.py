"""Which devices a command asks for: what does not go together is told before JAX starts."""

import pytest

from moejax.cli.devices import Processes, split_address
from tests.messages import error_line, refuses
from tests.moejax.cli.conftest import Call

P = ("decode", "demo", "--prompt", "x")
ADDRESS, COUNT, ID = ("--coordinator-address", "localhost:9876"), ("--num-processes", "2"), ("--process-id", "0")

MISTAKES: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("--simulate-devices", "0"), ("--simulate-devices", "1", "got 0")),
    (("--simulate-devices", "many"), ("--simulate-devices", "got 'many'")),
    (
        ID,
        ("--process-id", "--coordinator-address", "--num-processes"),
    ),
    ((*COUNT, *ID), ("--num-processes", "--coordinator-address")),
    (
        ADDRESS,
        ("--coordinator-address", "--num-processes", "--process-id"),
    ),
    (("--distributed", *COUNT), ("--distributed", "--num-processes")),
    ((*ADDRESS, "--num-processes", "0", *ID), ("--num-processes", "1", "got 0")),
    (
        (*ADDRESS, *COUNT, "--process-id", "2"),
        ("--process-id", "0 to 1", "--num-processes 2", "got 2"),
    ),
    (
        (*ADDRESS, *COUNT, "--process-id", "-1"),
        ("--process-id", "0 to 1", "--num-processes 2", "got -1"),
    ),
]


@pytest.mark.parametrize(("flags", "facts"), MISTAKES, ids=[" ".join(flags) for flags, _ in MISTAKES])
def test_mistake_is_told_in_one_line(call: Call, flags: tuple[str, ...], facts: tuple[str, ...]) -> None:
    outcome = call(*P, *flags)
    assert (outcome.status, outcome.out) == (2, "")
    error_line(outcome.err, *facts)


def test_devices_are_simulated_on_cpus_only(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    error_line(call(*P, "--simulate-devices", "2").err, "--simulate-devices", "JAX_PLATFORMS='cuda'", "cpu")


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
    with refuses(ValueError, "--coordinator-address", "HOST:PORT"):
        Processes(coordinator_address=address, num_processes=2, process_id=0)


def test_one_process_is_not_several() -> None:
    assert not Processes().several
    assert Processes(distributed=True).several
    assert Processes(coordinator_address="h:1", num_processes=1, process_id=0).several
