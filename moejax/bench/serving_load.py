"""Load against a running server: ragged prompts, sent at a rate or so many at a time."""

import http.client
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

import numpy as np

from moejax.bench.serving_request import Outcome, Refused, complete, get_json, split_url
from moejax.bench.works import check_amount

FIRST_ID = 10  # token ids below it tend to be special ones
POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is sent.

    base_url: of the server.  model: its name there.  api_key: None where it asks for none.
    num_prompts: requests in all.
    input_len, output_len: mean tokens of prompts and answers.
    range_ratio: lengths are drawn evenly from length x (1 - ratio) to length x (1 + ratio).
    request_rate: requests per second, in a Poisson process; infinite sends all at once.
    max_concurrency: most requests under way at a time; None is any number.
    vocab_size: prompts are random token ids below it.
    temperature: of the sampling; 0 is greedy.
    ignore_eos: whether answers go on to their full length.
    seed: of lengths, ids and arrival times.
    timeout: seconds that the server may be silent before a request counts as failed.

    Raises:
        ValueError: for values out of range.
    """

    base_url: str
    model: str
    api_key: str | None
    num_prompts: int
    input_len: int
    output_len: int
    range_ratio: float
    request_rate: float
    max_concurrency: int | None
    vocab_size: int
    temperature: float
    ignore_eos: bool
    seed: int
    timeout: float

    def __post_init__(self) -> None:
        split_url(self.base_url)
        for name in ("num_prompts", "input_len", "output_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, got {self.max_concurrency}")
        if not 0 <= self.range_ratio < 1:
            raise ValueError(f"range_ratio must be from 0 to below 1, got {self.range_ratio}")
        if not self.request_rate > 0:
            raise ValueError(f"request_rate must be above 0, got {self.request_rate}")
        if self.vocab_size <= FIRST_ID:
            raise ValueError(f"--vocab-size must be more than {FIRST_ID}, got {self.vocab_size}")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0, got {self.timeout}")
        check_amount("--num-prompts", self.num_prompts, self.input_len)

    @property
    def url(self) -> SplitResult:
        return split_url(self.base_url)

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A request and when it is sent, in seconds from the beginning."""

    at: float
    body: dict[str, Any]


def plan(load: Load) -> list[Planned]:
    """The requests of a load, in the order in which they are sent; the same for the same seed."""
    random = np.random.default_rng(load.seed)
    inputs, outputs = _lengths(random, load.input_len, load), _lengths(random, load.output_len, load)
    gaps: Any = np.zeros(load.num_prompts)
    if math.isfinite(load.request_rate):
        gaps[1:] = random.exponential(1 / load.request_rate, load.num_prompts - 1)
    planned = []
    for at, length, output in zip(np.cumsum(gaps), inputs, outputs, strict=True):
        prompt = random.integers(FIRST_ID, load.vocab_size, size=length).tolist()
        body = {"model": load.model, "prompt": prompt, "max_tokens": output, "temperature": load.temperature}
        planned.append(Planned(at=float(at), body=body | ({"ignore_eos": True} if load.ignore_eos else {})))
    return planned


def await_programs(load: Load, on_wait: Callable[[str], None]) -> str | None:
    """Waits until a moejax server has compiled all its programs, which would take their time from what is measured.

    on_wait: told how far it is. Other servers say nothing of programs, and are not waited for.

    Returns:
        A warning where no program was added for `load.timeout` seconds, as while a server has others to answer.
    """
    latest, since = -1, time.monotonic()
    while (found := _programs(load)) is not None and found[0] < found[1]:
        ready, of = found
        if ready != latest:
            latest, since = ready, time.monotonic()
        elif time.monotonic() - since > load.timeout:
            return (
                f"{load.base_url} has compiled {ready} of its {of} programs, and no other for {load.timeout:g} s: the "
                "times have compiling in them"
            )
        on_wait(f"waiting for {load.base_url}, which has compiled {ready} of {of} programs")
        time.sleep(POLL_SECONDS)
    return None


def _programs(load: Load) -> tuple[int, int] | None:
    """How many programs the server has, and how many there will be; None where it does not say."""
    try:
        said = get_json(load.url, "/health", load.headers, timeout=min(10.0, load.timeout))
    except (Refused, OSError, http.client.HTTPException):  # what is wrong with it, requests are told
        return None
    programs = said.get("programs") if isinstance(said, dict) else None
    found = (programs.get("ready"), programs.get("of")) if isinstance(programs, dict) else (None, None)
    return (found[0], found[1]) if isinstance(found[0], int) and isinstance(found[1], int) else None


def run(load: Load, requests: list[Planned]) -> tuple[list[Outcome], float]:
    """Sends all requests; returns their outcomes in the order of sending, and the seconds that all took."""
    workers = min(len(requests), load.max_concurrency or len(requests))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        began = time.perf_counter()
        waiting = [
            pool.submit(complete, load.url, request.body, load.headers, load.timeout)
            for request in _when_due(requests, began)
        ]
        outcomes = [one.result() for one in waiting]
    return outcomes, time.perf_counter() - began


def _when_due(requests: list[Planned], began: float) -> Iterator[Planned]:
    for request in requests:
        time.sleep(max(0.0, began + request.at - time.perf_counter()))
        yield request


def _lengths(random: np.random.Generator, mean: int, load: Load) -> list[int]:
    low, high = math.ceil(mean * (1 - load.range_ratio)), math.floor(mean * (1 + load.range_ratio))
    return random.integers(low, high + 1, size=load.num_prompts).tolist()
