"""Runs several systems side by side: tokens first, then interleaved rounds. Imports no JAX: every system is a process.

The rounds of all systems interleave and their order turns from round to round, so that drift of the machine meets all
alike; ratios are taken round by round. A system whose tokens are wrong is timed all the same, and called wrong.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from moejax.bench.peers import PEERS, Settings
from moejax.bench.process import PeerFailed, PeerProcess, worker_command
from moejax.bench.samples import percentiles, ratios
from moejax.bench.verdict import Verdict, judge
from moejax.bench.works import Request, Work

# Threads of torch and llama.cpp spin for a while after a call; the next system has to find the cores free.
SETTLE_SECONDS = 0.3
OURS = "moejax"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared.

    contenders: name -> (row of PEERS, settings); the first is ours.  requests: for the throughput, or none.
    """

    contenders: Mapping[str, tuple[str, Settings]]
    works: Sequence[Work]
    requests: Sequence[Request]
    rounds: int
    vocab_size: int
    commands: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of workers that are not moejax.bench.worker


@dataclass(kw_only=True)
class Standing:
    """One contender's results.

    verdicts: by the name of the work.  prefill, decode: seconds of every round, by work.  serve: of the requests.
    failed: why it could not go on, in one line.
    """

    name: str
    how: str = ""
    serve_how: str = ""
    load_seconds: float = 0.0
    warmup_seconds: dict[str, float] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    prefill: dict[str, list[float]] = field(default_factory=dict)
    decode: dict[str, list[float]] = field(default_factory=dict)
    serve: list[float] = field(default_factory=list)
    failed: str | None = None


def installed(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Those of the peers that can run here, and for the others what is missing and how to install it."""
    missing = {name: PEERS[name].missing() for name in names}
    absent = {
        name: f"not installed ({', '.join(modules)}): {PEERS[name].install}"
        for name, modules in missing.items()
        if modules
    }
    return [name for name in names if name not in absent], absent


def compare(plan: Plan, *, on_event: Callable[[str], None] = lambda text: None) -> list[Standing]:
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
                PeerProcess(name, plan.commands.get(name) or worker_command(peer), _threads(settings.threads))
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
            for name in _turned(list(running), round_):
                if plan.requests and running[name].serves:
                    on_event(f"round {round_ + 1} of {plan.rounds}: {len(plan.requests)} requests, {name}")
                    time.sleep(SETTLE_SECONDS)
                    _attempt(standings[name], running, lambda n=name: _serve(plan, standings[n], running[n]))
    return list(standings.values())


def as_json(plan: Plan, standings: Sequence[Standing]) -> dict[str, Any]:
    """Every sample, and the ratios of each round: how many times faster than it ours was."""
    ours = standings[0]
    return {
        "rounds": plan.rounds,
        "contenders": [
            {"name": s.name, "how": s.how, "serve_how": s.serve_how, "load_seconds": s.load_seconds, "failed": s.failed}
            for s in standings
        ],
        "works": [
            asdict(work)
            | {
                "name": work_name(work),
                "results": [
                    _result(ours, s, work) for s in standings if len(s.prefill.get(work_name(work), [])) == plan.rounds
                ],
            }
            for work in plan.works
        ],
        "throughput": _throughput(plan, ours, standings),
    }


def work_name(work: Work) -> str:
    """The work in a few characters: b8 pp128 tg64."""
    return f"b{work.batch_size} pp{work.input_len} tg{work.output_len}"


def _load(standing: Standing, process: PeerProcess, settings: Settings) -> None:
    began = time.perf_counter()
    process.load(settings)
    standing.load_seconds = time.perf_counter() - began
    standing.how, standing.serve_how = process.how, process.serve_how


def _check(
    plan: Plan, standings: Mapping[str, Standing], running: dict[str, PeerProcess], on_event: Callable[[str], None]
) -> None:
    """Warms everybody up on every work, which also gives the tokens, and judges these in float32."""
    tokens: dict[tuple[str, str], list[list[int]]] = {}
    for work in plan.works:
        for name in list(running):
            on_event(f"warming up {name}: {work_name(work)}")
            _attempt(
                standings[name], running, lambda n=name, w=work: _warm_up(plan, standings[n], running[n], w, tokens)
            )
    if plan.requests:
        for name in [name for name in running if running[name].serves]:
            on_event(f"warming up {name}: {len(plan.requests)} requests")
            _attempt(standings[name], running, lambda n=name: _serve_once(plan, running[n]))
    first, settings = next(iter(plan.contenders.values()))
    with PeerProcess("the reference", plan.commands.get("reference") or worker_command(first)) as reference:
        on_event("judging the tokens in float32")
        reference.load(Settings(**{**asdict(settings), "dtype": "float32", "mesh": None, "dispatch": "auto"}))
        for work in plan.works:
            prompts = work.prompts(plan.vocab_size)
            for name in running:
                found = judge(reference, prompts, tokens[name, work_name(work)], settings.dtype)
                standings[name].verdicts[work_name(work)] = found


def _warm_up(
    plan: Plan, standing: Standing, process: PeerProcess, work: Work, tokens: dict[tuple[str, str], list[list[int]]]
) -> None:
    began = time.perf_counter()
    run = process.run(work.prompts(plan.vocab_size), work.output_len)
    standing.warmup_seconds[work_name(work)] = time.perf_counter() - began
    tokens[standing.name, work_name(work)] = run.tokens


def _time(plan: Plan, standing: Standing, process: PeerProcess, work: Work) -> None:
    run = process.run(work.prompts(plan.vocab_size), work.output_len)
    standing.prefill.setdefault(work_name(work), []).append(run.prefill_seconds)
    standing.decode.setdefault(work_name(work), []).append(run.decode_seconds)


def _serve_once(plan: Plan, process: PeerProcess) -> float:
    prompts = [request.prompt for request in plan.requests]
    return process.serve(prompts, [request.output_len for request in plan.requests]).seconds


def _serve(plan: Plan, standing: Standing, process: PeerProcess) -> None:
    standing.serve.append(_serve_once(plan, process))


def _attempt(standing: Standing, running: dict[str, PeerProcess], action: Callable[[], object]) -> None:
    """Runs `action`; a peer that fails is out, with the reason in its standing."""
    try:
        action()
    except PeerFailed as error:
        if standing.name == OURS:
            raise
        standing.failed = str(error)
        running.pop(standing.name).close()


def _threads(threads: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def _turned(names: list[str], by: int) -> list[str]:
    start = by % max(1, len(names))
    return names[start:] + names[:start]


def _result(ours: Standing, standing: Standing, work: Work) -> dict[str, Any]:
    name = work_name(work)
    verdict = standing.verdicts[name]
    timed = {"prefill": (standing.prefill[name], ours.prefill[name], work.prefill_tokens)}
    if work.decode_tokens:
        timed["decode"] = (standing.decode[name], ours.decode[name], work.decode_tokens)
    return {
        "contender": standing.name,
        "tokens": verdict.judgement,
        "worst_gap": verdict.worst_gap,
        "mean_gap": verdict.mean_gap,
        "warmup_seconds": standing.warmup_seconds[name],
    } | {part: _samples(seconds, our, tokens) for part, (seconds, our, tokens) in timed.items()}


def _samples(seconds: list[float], ours: list[float], tokens: int) -> dict[str, Any]:
    """Seconds and rates of every round; `ratios` is ours over theirs, above 1 where moejax was faster."""
    return {
        "seconds": seconds,
        "tokens_per_second": [tokens / one for one in seconds],
        "median_tokens_per_second": tokens / percentiles(seconds)["50"],
        "ratios": ratios(ours, seconds),
        "median_ratio": percentiles(ratios(ours, seconds))["50"],
    }


def _throughput(plan: Plan, ours: Standing, standings: Sequence[Standing]) -> dict[str, Any] | None:
    if not plan.requests:
        return None
    total = sum(request.output_len for request in plan.requests)
    return {
        "num_requests": len(plan.requests),
        "prompt_tokens": sum(len(request.prompt) for request in plan.requests),
        "output_tokens": total,
        "results": [
            {"contender": s.name, "how": s.serve_how, **_samples(s.serve, ours.serve, total)}
            for s in standings
            if len(s.serve) == plan.rounds
        ],
    }


def scratch_folder() -> "tempfile.TemporaryDirectory[str]":
    """Where peers put files of their own, on the disk that TMPDIR names."""
    return tempfile.TemporaryDirectory(prefix="moejax-bench-", dir=os.environ.get("TMPDIR"))
