"""The queue in front of the engine: clients take turns, and so do the requests of one client."""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

from moejax.serving.jobs import QueueFull, ServedRequest


def share_of(most: int) -> int:
    """How many jobs of one client may wait where `most` may in all: a quarter is left to others."""
    return max(1, most - most // 4)


class FairQueue:
    """Jobs that wait.

    The next job is one of the client whose last turn is longest ago, and of its requests of that whose last turn is
    longest ago. So who asks for little does not wait for all of another's.

    Args:
        most: jobs that may wait.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._clients: OrderedDict[str, deque[deque[ServedRequest]]] = OrderedDict()  # the next first, none is empty

    def __iter__(self) -> Iterator[ServedRequest]:
        return (job for requests in self._clients.values() for jobs in requests for job in jobs)

    def __len__(self) -> int:
        return sum(len(jobs) for requests in self._clients.values() for jobs in requests)

    def add(self, jobs: Sequence[ServedRequest], client: str) -> None:
        """Adds the jobs of one request, all or none.

        Raises:
            QueueFull: when they would be more than may wait, of all or of this client.
        """
        waiting, own = len(self), sum(map(len, self._clients.get(client, ())))
        if waiting + len(jobs) > self.most:
            raise QueueFull(f"{waiting} requests are waiting, the most are {self.most}")
        if own + len(jobs) > share_of(self.most):
            raise QueueFull(f"{own} requests of this client are waiting, the most of one are {share_of(self.most)}")
        if jobs:
            self._clients.setdefault(client, deque()).append(deque(jobs))

    @property
    def first(self) -> ServedRequest | None:
        """The job whose turn is next."""
        return next(iter(self), None)

    def pop(self) -> ServedRequest:
        """Takes out the job whose turn is next; its client and its request go behind the others."""
        client, requests = self._clients.popitem(last=False)
        jobs = requests.popleft()
        job = jobs.popleft()
        if jobs:
            requests.append(jobs)
        if requests:
            self._clients[client] = requests
        return job

    def take_cancelled(self) -> list[ServedRequest]:
        """Takes out the jobs that nobody waits for any more."""
        gone = [job for job in self if job.cancelled]
        if gone:
            for client, requests in list(self._clients.items()):
                left = (deque(job for job in jobs if not job.cancelled) for jobs in requests)
                self._clients[client] = deque(jobs for jobs in left if jobs)
                if not self._clients[client]:
                    del self._clients[client]
        return gone

    def clear(self) -> None:
        """Takes out all."""
        self._clients.clear()
