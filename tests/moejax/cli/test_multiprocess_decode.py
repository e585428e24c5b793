"""Two processes with 4 devices each decode the bundled checkpoint as one device does, and end together."""

import pytest

import moejax
from tests.moejax.cli.mesh_decode import PROMPTS
from tests.moejax.cli.test_multiprocess import MINUTE, PEER_ENDED, Start, end, port, read_to, start

__all__ = ["port", "start"]  # fixtures

DECODE = "tests.moejax.cli.mesh_decode", "mesh-decode"


@pytest.mark.parametrize(
    ("mesh", "dispatch"),
    [("expert=4,tensor=2", "replicated"), ("data=2,expert=4", "gather"), ("expert=8", "all_to_all")],
)
def test_tokens_are_those_of_one_device(start: Start, mesh: str, dispatch: str) -> None:
    processes = [start(id, "--mesh", mesh, "--dispatch", dispatch, command=DECODE) for id in (0, 1)]
    results = moejax.decode(moejax.load("demo", dtype="float32"), PROMPTS, max_tokens=32, ignore_eos=True)
    first, second = map(end, processes)
    assert first.status == 0, first.err
    assert first.out.splitlines() == ["loaded", *(" ".join(map(str, result.token_ids)) for result in results)]
    assert (second.status, second.out, second.err) == (0, "", "")


@pytest.mark.parametrize("killed", [0, 1], ids=["coordinator", "worker"])
def test_killed_process_ends_the_other(start: Start, killed: int) -> None:
    flags = ("--mesh", "expert=4,tensor=2", "--dispatch", "replicated", "--max-tokens", "1000")
    processes = [start(id, *flags, command=DECODE) for id in (0, 1)]
    read_to(processes[0], "loaded")
    processes[killed].kill()
    survivor = end(processes[1 - killed], MINUTE)
    assert (survivor.status, survivor.out, survivor.err) == (2, "", PEER_ENDED)
