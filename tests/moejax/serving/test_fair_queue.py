"""Who asks for little does not wait for all that others ask for. Nothing is computed."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.serving.fair_queue import FairQueue, share_of
from moejax.serving.jobs import QueueFull
from tests.messages import refuses


def jobs(name: str, count: int) -> list[Any]:
    return [SimpleNamespace(name=f"{name}{number}", cancelled=False) for number in range(count)]


def order(queue: FairQueue) -> list[str]:
    names: list[Any] = []
    while queue.first is not None:
        first = queue.first
        names.append(queue.pop())
        assert names[-1] is first
    return [one.name for one in names]


def test_clients_take_turns_and_so_do_their_requests() -> None:
    queue = FairQueue(100)
    queue.add(jobs("a", 4), "one")
    queue.add(jobs("b", 2), "one")
    queue.add(jobs("c", 2), "two")
    assert len(queue) == 8
    assert order(queue) == ["a0", "c0", "b0", "c1", "a1", "b1", "a2", "a3"]


def test_one_client_with_one_kind_of_request_is_served_in_its_order() -> None:
    queue = FairQueue(100)
    for name in "abc":
        queue.add(jobs(name, 1), "one")
    assert order(queue) == ["a0", "b0", "c0"]


@pytest.mark.parametrize(("most", "share"), [(1, 1), (2, 2), (4, 3), (8, 6), (64, 48)])
def test_a_quarter_is_left_to_others(most: int, share: int) -> None:
    assert share_of(most) == share
    queue = FairQueue(most)
    with refuses(QueueFull, "0", str(share if share < most else most)):
        queue.add(jobs("a", share + 1), "one")
    queue.add(jobs("a", share), "one")
    if share < most:
        queue.add(jobs("b", most - share), "two")
    with refuses(QueueFull, f"{most} requests are waiting", str(most)):
        queue.add(jobs("c", 1), "three")
    assert len(queue) == most


@given(
    requests=st.lists(st.tuples(st.sampled_from("xyz"), st.integers(1, 9)), max_size=12),
    cancelled=st.sets(st.integers(0, 60)),
)
def test_nobody_is_lost_and_nobody_waits_for_more_than_a_turn_of_each(
    requests: list[tuple[str, int]], cancelled: set[int]
) -> None:
    queue, everything = FairQueue(1000), []
    for number, (client, count) in enumerate(requests):
        one = jobs(f"{client}.{number}.", count)
        queue.add(one, client)
        everything += one
    gone = [job for at, job in enumerate(everything) if at in cancelled]
    for job in gone:
        job.cancelled = True
    assert {id(job) for job in queue.take_cancelled()} == {id(job) for job in gone}
    left = {job.name for job in everything if not job.cancelled}
    assert {one.name for one in queue} == left  # type: ignore[attr-defined]
    found = order(queue)
    assert set(found) == left and len(found) == len(left)
    for client in "xyz":  # a client's first job comes after at most one of each other client
        first = next((at for at, name in enumerate(found) if name.startswith(client)), 0)
        assert len({name[0] for name in found[:first]}) == first
