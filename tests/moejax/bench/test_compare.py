"""Rounds, ratios and verdicts, with peers whose times and mistakes are known."""

import dataclasses
import json

import pytest

from moejax.bench.compare import check_installed, compare, installed, warm_up_requests
from moejax.bench.peers import PEERS, Peer, asked_peers
from moejax.bench.process import PeerFailed
from moejax.bench.standings import SystemsPlan, as_json
from moejax.bench.works import RaggedRequest, Work
from tests.messages import refuses, says
from tests.moejax.bench.fakes import SETTINGS, command

WORK = Work(batch_size=2, input_len=3, output_len=5)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moejax.bench.compare.SETTLE_SECONDS", 0.0)


def plan(behaviours: dict[str, str], rounds: int = 2) -> SystemsPlan:
    commands = {name: command(behaviour) for name, behaviour in behaviours.items()}
    return SystemsPlan(
        contenders={name: ("moejax", SETTINGS) for name in behaviours},
        works=[WORK],
        requests=[RaggedRequest(prompt=[4], output_len=2), RaggedRequest(prompt=[5, 6], output_len=3)],
        rounds=rounds,
        vocab_size=50,
        commands={**commands, "reference": command("right")},
    )


def test_times_tokens_and_failures_of_every_peer() -> None:
    asked = plan({"moejax": "right", "fast and wrong": "wrong", "dying": "dies", "broken": "raises"})
    events: list[str] = []
    standings = compare(asked, on_event=events.append)
    found = as_json(asked, standings)
    json.dumps(found)
    failed = {one["name"]: one["failed"] for one in found["contenders"]}
    assert failed["moejax"] is None and failed["fast and wrong"] is None
    says(failed["dying"], "dying", "exit code 3", "as it were")
    says(failed["broken"], "broken cannot load", "RuntimeError", "no such layer")
    (work,) = found["works"]
    ours, wrong = work["results"]
    assert (ours["contender"], ours["tokens"], ours["worst_gap"]) == ("moejax", "same tokens", 0.0)
    assert (wrong["contender"], wrong["tokens"], wrong["worst_gap"]) == ("fast and wrong", "WRONG", 4.0)
    # It takes half of our seconds: a ratio below 1 is a loss of ours.
    assert wrong["decode"]["seconds"] == [0.5, 0.5]
    assert wrong["decode"]["ratios"] == [0.5, 0.5]
    assert wrong["decode"]["median_tokens_per_second"] == 2 * 4 / 0.5
    assert wrong["prefill"]["median_tokens_per_second"] == 2 * 3 / 0.25
    served = found["throughput"]
    assert (served["num_requests"], served["prompt_tokens"], served["output_tokens"]) == (2, 3, 5)
    assert [(one["contender"], one["tokens"]) for one in served["results"]] == [
        ("moejax", "same tokens"),
        ("fast and wrong", "same tokens"),
    ]
    assert (found["rounds"], served["rounds"], len(served["results"][0]["seconds"])) == (2, 1, 1)
    assert [standing.name for standing in standings if not standing.right] == ["fast and wrong"]
    assert set(standings[0].warmup_seconds) == {"b2 pp3 tg5", "requests"}
    assert found["contenders"][0]["warmup_seconds"] == sum(standings[0].warmup_seconds.values())
    says("\n".join(events), "float32")


def test_a_peer_that_mistakes_only_padded_prompts_is_found_out() -> None:
    asked = plan({"moejax": "right", "padding": "wrong when ragged"}, rounds=1)
    standings = compare(asked)
    assert [standing.right for standing in standings] == [True, False]
    ours, padding = as_json(asked, standings)["throughput"]["results"]
    assert (ours["tokens"], padding["tokens"]) == ("same tokens", "WRONG")


def test_systems_that_agree_are_judged_once() -> None:
    asked = plan({"moejax": "right", "same": "right"}, rounds=1)
    once = dataclasses.replace(asked, requests=[], commands={**asked.commands, "reference": command("scores once")})
    assert [standing.right for standing in compare(once)] == [True, True]


def test_which_requests_are_judged() -> None:
    requests = [
        RaggedRequest(prompt=[1] * length, output_len=2 * length) for length in (9, 1, *range(2, 9), *range(10, 30))
    ]
    chosen = warm_up_requests(requests)
    assert [len(one.prompt) for one in chosen] == [1, 5, 9, 13, 17, 21, 25, 29]
    assert [one.output_len for one in chosen] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(warm_up_requests(requests[:1])) == 1 and warm_up_requests([]) == []


@pytest.mark.parametrize(("rounds", "request_rounds"), [(1, 1), (3, 1), (4, 2), (6, 2)])
def test_requests_are_timed_every_third_round(rounds: int, request_rounds: int) -> None:
    asked = plan({"moejax": "right"}, rounds=rounds)
    served = as_json(asked, compare(asked))["throughput"]
    assert (served["rounds"], len(served["results"][0]["seconds"])) == (request_rounds, request_rounds)


def test_when_moejax_fails_there_is_nothing_to_compare() -> None:
    with pytest.raises(PeerFailed, match="moejax cannot load"):
        compare(plan({"moejax": "raises", "other": "right"}))


def test_a_single_token_has_no_decoding() -> None:
    asked = dataclasses.replace(plan({"moejax": "right"}, rounds=1), works=[dataclasses.replace(WORK, output_len=1)])
    (work,) = as_json(asked, compare(asked))["works"]
    assert "decode" not in work["results"][0]
    assert work["name"] == "b2 pp3 tg1"


def test_names_of_peers_in_a_flag() -> None:
    assert asked_peers("vllm, transformers,vllm") == ["vllm", "transformers"]
    assert asked_peers("transformers-compiled,transformers,transformers") == [
        "transformers-compiled-grouped_mm",
        "transformers-compiled-batched_mm",
        "transformers",
    ]
    assert asked_peers("none") == []
    for text in ("", " , ", "none,vllm"):
        with refuses(ValueError, "commas", "none", f"got '{text}'"):
            asked_peers(text)


def test_an_unknown_peer() -> None:
    with pytest.raises(ValueError) as caught:
        asked_peers("lama.cpp")
    assert str(caught.value) == (
        "unknown peer 'lama.cpp': the known ones are transformers-compiled, transformers, "
        "transformers-compiled-grouped_mm, transformers-compiled-batched_mm, llama.cpp, vllm; did you mean 'llama.cpp'?"
    )


def test_what_is_not_installed_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Peer(load="nowhere:load", needs=("json", "no_such_module"), install="pip install it")
    monkeypatch.setitem(PEERS, "absent", absent)
    present, missing = installed(["moejax", "absent"])
    assert (present, list(missing)) == (["moejax"], ["absent"])
    says(missing["absent"], "no_such_module", "pip install it")
    check_installed(present, missing)
    check_installed([], {})  # none was asked for
    with refuses(ValueError, "absent", "no_such_module", "pip install it", "--peers none"):
        check_installed([], missing)
