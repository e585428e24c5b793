"""Two processes with 4 devices each decode the bundled checkpoint as one device does, and end together."""

import json
from pathlib import Path

import pytest

import moejax
from moejax.planning.expert_load import read_expert_load
from tests.messages import error_line
from tests.moejax.cli.several import DECODE, MINUTE, PEER_ENDED, Ended, Starter, end, read_one

PROMPTS = ("A list is", "The import statement is used to", "If")
LONG = "The import statement combines two operations; it searches for the named module, then it binds the results"
F32 = ("--dtype", "float32", "-n", "16")
HYBRID = ("--mesh", "expert=4,tensor=2")  # and dispatch auto, which takes replicated here


@pytest.fixture(scope="module")
def model() -> moejax.Model:
    return moejax.load("demo", dtype="float32")


def both(start: Starter, *flags: str) -> tuple[Ended, Ended]:
    processes = [start(id, *flags, command=DECODE) for id in (0, 1)]
    first, second = map(end, processes)
    assert first.status == 0, first.err
    return first, second


def test_replicated_prints_what_one_device_prints_as_it_comes(start: Starter, model: moejax.Model) -> None:
    first, second = both(start, *F32, *HYBRID, "--prompt", PROMPTS[0], "--stream", "--stop", "str")
    [result] = moejax.decode(model, PROMPTS[0], max_tokens=16, stop="str")
    assert result.stop_reason == "str", "the stop string must be met for this to be its test"
    assert first.out == f"{result.text}\n"
    remark, *statistics = first.err.splitlines()
    assert remark.startswith("dispatch replicated on mesh data=1,expert=4,tensor=2: ")
    assert len(statistics) == 3
    assert second == Ended(0, "", "")


@pytest.mark.parametrize(
    ("mesh", "dispatch", "prompts"),
    [("data=2,expert=4", "gather", (*PROMPTS, LONG)), ("expert=8", "all_to_all", PROMPTS[:1])],
    ids=["gather", "all_to_all"],
)
@pytest.mark.slow
def test_tokens_are_those_of_one_device(
    start: Starter, model: moejax.Model, mesh: str, dispatch: str, prompts: tuple[str, ...], tmp_path: Path
) -> None:
    """And the expert load, which process 0 alone writes: another one would refuse a file that is there."""
    load = tmp_path / "load.json"
    given = [word for prompt in prompts for word in ("--prompt", prompt)]
    saving = ("--save-expert-load", str(load))
    first, second = both(start, *F32, "--mesh", mesh, "--dispatch", dispatch, "--ignore-eos", "--json", *given, *saving)
    results = moejax.decode(model, prompts, max_tokens=16, ignore_eos=True)
    printed = [[output["token_ids"] for output in result["outputs"]] for result in json.loads(first.out)]
    assert printed == [[result.token_ids] for result in results]
    assert read_expert_load(load).counts == results[0].stats.expert_rows
    assert second == Ended(0, "", "")


@pytest.mark.parametrize(
    ("only_of_first", "only_of_second", "what"),
    [
        (("--prompt", "A list is"), ("--prompt", "A tuple is"), "prompts"),
        (("--prompt", "A list is", "--json"), ("--prompt", "A list is"), "output"),
    ],
    ids=["prompts", "json"],
)
def test_what_only_one_process_was_given_is_refused(
    start: Starter, only_of_first: tuple[str, ...], only_of_second: tuple[str, ...], what: str
) -> None:
    flags = (*F32, *HYBRID, "--quiet")
    processes = [start(id, *flags, *own, command=DECODE) for id, own in enumerate((only_of_first, only_of_second))]
    first, second = map(end, processes)
    assert (first.status, first.out) == (second.status, second.out) == (2, "")
    error_line(first.err, "process 1", what, "process 0")
    assert second.err in (first.err, PEER_ENDED)  # process 0 may be gone before it gets there


@pytest.mark.parametrize("killed", [0, 1], ids=["coordinator", "worker"])
def test_killed_process_ends_the_other(start: Starter, killed: int) -> None:
    """With the command's own limits of time."""
    flags = ("--dtype", "float32", *HYBRID, "--prompt", "A list is", "--quiet", "-n", "1000", "--ignore-eos")
    processes = [start(id, *flags, command=("moejax", "decode", "demo")) for id in (0, 1)]
    read_one(processes[0])
    processes[killed].kill()
    survivor = end(processes[1 - killed], MINUTE)
    assert (survivor.status, survivor.err) == (2, PEER_ENDED)
