"""`--mesh auto` ranks for the batch and the dispatch that a command knows."""

import pytest

from tests.messages import says
from tests.moejax.cli.conftest import Call

BATCHES = {
    ("decode", "demo", "--prompt", "a", "--prompt", "b", "--n", "3", "--temperature", "1"): 6,
    ("decode", "demo", "--prompt", "a", "--n", "99", "--temperature", "1"): 64,
    ("bench", "latency", "demo", "-b", "1,4", "-p", "16", "-n", "2"): 4,
    ("bench", "throughput", "demo", "--num-prompts", "5", "-p", "4-9", "-n", "2-3"): 5,
    ("serve", "demo", "--max-batch", "7", "--port", "0"): 7,
}


@pytest.mark.parametrize("command", BATCHES, ids=lambda command: f"{command[0]} {BATCHES[command]}")
def test_auto_is_asked_for_the_batch(command: tuple[str, ...], call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def auto_split(config: object, dtype: str, limit: int, dispatch: str, devices: object, *, batch_size: int) -> None:
        raise ValueError(f"asked for {batch_size} sequences by {dispatch}")

    monkeypatch.setattr("moejax.planning.auto.auto_split", auto_split)
    monkeypatch.setattr("moejax.serving.server.open_socket", lambda host, port: None)  # nobody would close it
    outcome = call(*command, "--mesh", "auto", "--dispatch", "gather")
    assert outcome.status == 2
    says(outcome.err, f"{BATCHES[command]} sequences", "gather")
