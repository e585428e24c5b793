"""Runs several systems side by side: tokens first, then interleaved rounds. Imports no JAX: every system is a process.

The rounds of all systems interleave and their order turns from round to round, so that drift of the machine meets all
alike; ratios are taken round by round. A system whose tokens are wrong is timed all the same, and called wrong.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from moejax.bench.peers import PEERS, Served, Settings
from moejax.bench.process import PeerFailed, PeerProcess, worker_command
from moejax.bench.standings import REQUESTS, Standing, standings_json, work_name
from moejax.bench.verdict import Gaps, judge
from moejax.bench.works import RaggedRequest, Work

# Threads of torch and llama.cpp spin for a while after a call; the next system has to find the cores free.
SETTLE_SECONDS = 0.3
# A round of the requests takes longer than one of all else: so many of them, with such a part of their outputs, are the
# warm-up, whose tokens are judged; and they are timed every third round.
JUDGED_REQUESTS, WARM_UP_PART = 8, 8
ROUNDS_PER_REQUEST_ROUND = 3
OURS = "moejax"


@dataclass(frozen=True, kw_only=True)
class SystemsPlan:
    """What is compared.

    contenders: name -> (row of PEERS, settings); the first is ours.  requests: for the throughput, or none.
    """

    contenders: Mapping[str, tuple[str, Settings]]
    works: Sequence[Work]
    requests: Sequence[RaggedRequest]
    rounds: int
    vocab_size: int
    commands: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of workers that are not moejax.bench.worker

    @property
    def threads(self) -> int:
        """CPU threads of every system."""
        _, settings = next(iter(self.contenders.values()))
        return settings.threads

    @property
    def request_rounds(self) -> int:
        """Rounds of the requests: the first of every three."""
        return -(-self.rounds // ROUNDS_PER_REQUEST_ROUND)


def installed(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Those of the peers that can run here, and for the others what is missing and how to install it."""
    missing = {name: PEERS[name].missing() for name in names}
    absent = {
        name: f"not installed ({', '.join(modules)}): {PEERS[name].install}"
        for name, modules in missing.items()
        if modules
    }
    return [name for name in names if name not in absent], absent


def check_installed(present: Sequence[str], absent: Mapping[str, str]) -> None:
    """Raises ValueError when systems were asked for and none of them is here, before anything is measured."""
    if absent and not present:
        reasons = "; ".join(f"{name} is {reason}" for name, reason in absent.items())
        raise ValueError(f"there is nothing to compare with: {reasons}. --peers none times moejax alone")


def compare(plan: SystemsPlan, *, on_event: Callable[[str], None] = lambda text: None) -> list[Standing]:
    """Loads all contenders, compares their tokens, and times them in turn; the first one is moejax.

    A peer that fails is reported in its standing and left out from there on.

    Raises:
        PeerFailed: when moejax itself fails.
    """
    standings = {name: Standing(name=name) for name in plan.contenders}
    with ExitStack() as stack:
        running: dict[str, PeerProcess] = {}
        for name, (peer, settings) in plan.contenders.items():
            on_event(f"loading {name}")
            process = stack.enter_context(
                PeerProcess(name, plan.commands.get(name) or worker_command(peer), _environment(settings.threads))
            )
            running[name] = process
            _attempt(standings[name], running, lambda s=standings[name], p=process, c=settings: _load(s, p, c))
        _check(plan, standings, running, on_event)
        for round_ in range(plan.rounds):
            for work in plan.works:
                on_event(f"round {round_ + 1} of {plan.rounds}: {work_name(work)}")
                for name in _turned(list(running), round_):
                    time.sleep(SETTLE_SECONDS)
                    _attempt(standings[name], running, lambda n=name, w=work: _time(plan, standings[n], running[n], w))
            serving = [name for name in running if running[name].serves]
            for name in _turned(serving, round_) if plan.requests and not round_ % ROUNDS_PER_REQUEST_ROUND else []:
                on_event(f"round {round_ + 1} of {plan.rounds}: {len(plan.requests)} requests, {name}")
                time.sleep(SETTLE_SECONDS)
                _attempt(standings[name], running, lambda n=name: _time_requests(plan, standings[n], running[n]))
    return list(standings.values())


def as_json(plan: SystemsPlan, standings: Sequence[Standing]) -> dict[str, Any]:
    """The whole comparison."""
    return standings_json(standings, plan.works, plan.requests, plan.rounds, plan.request_rounds)


def _load(standing: Standing, process: PeerProcess, settings: Settings) -> None:
    began = time.perf_counter()
    process.load(settings)
    standing.load_seconds = time.perf_counter() - began
    standing.how, standing.serve_how = process.how, process.serve_how


def _check(
    plan: SystemsPlan,
    standings: Mapping[str, Standing],
    running: dict[str, PeerProcess],
    on_event: Callable[[str], None],
) -> None:
    """Warms everybody up on every work, which also gives the tokens, and judges these in float32."""
    tokens: dict[tuple[str, str], list[list[int]]] = {}
    for work in plan.works:
        for name in list(running):
            on_event(f"warming up {name}: {work_name(work)}")
            _attempt(
                standings[name], running, lambda n=name, w=work: _warm_up(plan, standings[n], running[n], w, tokens)
            )
    short = warm_up_requests(plan.requests)
    for name in [name for name in running if short and running[name].serves]:
        on_event(f"warming up {name}: {len(short)} requests")
        _attempt(standings[name], running, lambda n=name: _warm_up_requests(standings[n], running[n], short, tokens))
    first, settings = next(iter(plan.contenders.values()))
    with PeerProcess("the reference", plan.commands.get("reference") or worker_command(first)) as reference:
        on_event("judging the tokens in float32")
        reference.load(Settings(**{**asdict(settings), "dtype": "float32", "mesh": None, "dispatch": "auto"}))
        prompts = {work_name(work): work.prompts(plan.vocab_size) for work in plan.works}
        prompts[REQUESTS] = [one.prompt for one in short]
        known: Gaps = {}
        for name in running:
            for what in [what for what in prompts if (name, what) in tokens]:
                on_event(f"judging the tokens in float32: {name}, {what}")
                found = judge(reference, prompts[what], tokens[name, what], settings.dtype, known)
                standings[name].verdicts[what] = found


def _warm_up(
    plan: SystemsPlan,
    standing: Standing,
    process: PeerProcess,
    work: Work,
    tokens: dict[tuple[str, str], list[list[int]]],
) -> None:
    began = time.perf_counter()
    run = process.run(work.prompts(plan.vocab_size), work.output_len)
    standing.warmup_seconds[work_name(work)] = time.perf_counter() - began
    tokens[standing.name, work_name(work)] = run.tokens


def _time(plan: SystemsPlan, standing: Standing, process: PeerProcess, work: Work) -> None:
    run = process.run(work.prompts(plan.vocab_size), work.output_len)
    standing.prefill.setdefault(work_name(work), []).append(run.prefill_seconds)
    standing.decode.setdefault(work_name(work), []).append(run.decode_seconds)


def _warm_up_requests(
    standing: Standing,
    process: PeerProcess,
    requests: Sequence[RaggedRequest],
    tokens: dict[tuple[str, str], list[list[int]]],
) -> None:
    began = time.perf_counter()
    served = _serve(process, requests)
    standing.warmup_seconds[REQUESTS] = time.perf_counter() - began
    tokens[standing.name, REQUESTS] = served.tokens


def warm_up_requests(requests: Sequence[RaggedRequest]) -> list[RaggedRequest]:
    """Some of the requests, from the shortest prompt to the longest, with a part of their outputs."""
    order = sorted(requests, key=lambda one: len(one.prompt))
    count = min(JUDGED_REQUESTS, len(order))
    chosen = [order[round(place * (len(order) - 1) / max(1, count - 1))] for place in range(count)]
    return [replace(one, output_len=-(-one.output_len // WARM_UP_PART)) for one in chosen]


def _time_requests(plan: SystemsPlan, standing: Standing, process: PeerProcess) -> None:
    standing.serve.append(_serve(process, plan.requests).seconds)


def _serve(process: PeerProcess, requests: Sequence[RaggedRequest]) -> Served:
    return process.serve([one.prompt for one in requests], [one.output_len for one in requests])


def _attempt(standing: Standing, running: dict[str, PeerProcess], action: Callable[[], object]) -> None:
    """Runs `action`; a peer that fails is out, with the reason in its standing."""
    try:
        action()
    except PeerFailed as error:
        if standing.name == OURS:
            raise
        standing.failed = str(error)
        running.pop(standing.name).close()


def _environment(threads: int) -> dict[str, str]:
    """Of every system's process. They share a GPU: JAX would reserve three quarters of it for the first one."""
    preallocate = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": preallocate,
    }


def _turned(names: list[str], by: int) -> list[str]:
    start = by % max(1, len(names))
    return names[start:] + names[:start]


def scratch_folder() -> "tempfile.TemporaryDirectory[str]":
    """Where peers put files of their own, on the disk that TMPDIR names."""
    return tempfile.TemporaryDirectory(prefix="moejax-bench-", dir=os.environ.get("TMPDIR"))
