"""Runs several systems side by side: tokens first, then interleaved rounds. Imports no JAX: every system is a process.

The rounds of all systems interleave and their order turns from round to round, so that drift of the machine meets all
alike; ratios are taken round by round. A system whose tokens are wrong is timed all the same, and called wrong.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from moejax.bench.peers import PEERS
from moejax.bench.process import PeerFailed, PeerProcess, worker_command
from moejax.bench.standings import OURS, REQUESTS, ROUNDS_PER_REQUEST_ROUND, Standing, SystemsPlan, work_name
from moejax.bench.verdict import Gaps, judge
from moejax.bench.works import RaggedRequest

# Threads of torch and llama.cpp spin for a while after a call; the next system has to find the cores free.
SETTLE_SECONDS = 0.3
# So many of the requests, with such a part of their outputs, are the warm-up, whose tokens are judged.
JUDGED_REQUESTS, WARM_UP_PART = 8, 8

Tokens = dict[tuple[str, str], list[list[int]]]  # system, name of a question -> of each row


@dataclass(frozen=True, kw_only=True)
class BenchQuestion:
    """What every system is asked: the name of a work or REQUESTS, prompts, tokens to generate after each."""

    name: str
    prompts: list[list[int]]
    output_lens: list[int]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Who takes part, and what became of everybody. running: the processes of those that have not failed."""

    plan: SystemsPlan
    standings: Mapping[str, Standing]
    running: dict[str, PeerProcess]
    on_event: Callable[[str], None]


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
        contest = Contest(plan=plan, standings=standings, running={}, on_event=on_event)
        for name, (peer, settings) in plan.contenders.items():
            on_event(f"loading {name}")
            command = plan.commands.get(name) or worker_command(peer)
            contest.running[name] = stack.enter_context(PeerProcess(name, command, _environment(settings.threads)))
            with _attempt(contest, name) as process:
                began = time.perf_counter()
                process.load(settings)
                standings[name].load_seconds = time.perf_counter() - began
                standings[name].how, standings[name].serve_how = process.how, process.serve_how
        asked = _questions(plan, warm_up_requests(plan.requests))
        _judge(contest, asked, _warm_up(contest, asked))
        asked = _questions(plan, plan.requests)
        for round_ in range(plan.rounds):
            _time_round(contest, asked, round_)
    return list(standings.values())


def warm_up_requests(requests: Sequence[RaggedRequest]) -> list[RaggedRequest]:
    """Some of the requests, from the shortest prompt to the longest, with a part of their outputs."""
    order = sorted(requests, key=lambda one: len(one.prompt))
    count = min(JUDGED_REQUESTS, len(order))
    chosen = [order[round(place * (len(order) - 1) / max(1, count - 1))] for place in range(count)]
    return [replace(one, output_len=-(-one.output_len // WARM_UP_PART)) for one in chosen]


def _questions(plan: SystemsPlan, requests: Sequence[RaggedRequest]) -> list[BenchQuestion]:
    questions = [
        BenchQuestion(
            name=work_name(work),
            prompts=work.prompts(plan.vocab_size),
            output_lens=[work.output_len] * work.batch_size,
        )
        for work in plan.works
    ]
    if requests:
        prompts, lengths = [one.prompt for one in requests], [one.output_len for one in requests]
        questions.append(BenchQuestion(name=REQUESTS, prompts=prompts, output_lens=lengths))
    return questions


def _warm_up(contest: Contest, asked: Sequence[BenchQuestion]) -> Tokens:
    """Warms everybody up on everything, which also gives the tokens."""
    tokens: Tokens = {}
    for question in asked:
        for name in _able(contest, question):
            contest.on_event(f"warming up {name}: {question.name}")
            with _attempt(contest, name) as process:
                began = time.perf_counter()
                tokens[name, question.name], _ = _ask(process, question)
                contest.standings[name].warmup_seconds[question.name] = time.perf_counter() - began
    return tokens


def _judge(contest: Contest, asked: Sequence[BenchQuestion], tokens: Tokens) -> None:
    """Judges the tokens by moejax in float32 on one device."""
    first, settings = contest.plan.contenders[OURS]
    command = contest.plan.commands.get("reference") or worker_command(first)
    with PeerProcess("the reference", command) as reference:
        contest.on_event("judging the tokens in float32")
        reference.load(replace(settings, dtype="float32", mesh=None, dispatch="auto"))
        known: Gaps = {}
        for name in contest.running:
            for question in [one for one in asked if (name, one.name) in tokens]:
                contest.on_event(f"judging the tokens in float32: {name}, {question.name}")
                found = judge(reference, question.prompts, tokens[name, question.name], settings.dtype, known)
                contest.standings[name].verdicts[question.name] = found


def _time_round(contest: Contest, asked: Sequence[BenchQuestion], round_: int) -> None:
    """Times everybody on everything once, beginning with another system in each round."""
    for question in asked:
        if question.name == REQUESTS and round_ % ROUNDS_PER_REQUEST_ROUND:
            continue
        able = _able(contest, question)
        start = round_ % max(1, len(able))
        for name in able[start:] + able[:start]:
            contest.on_event(f"round {round_ + 1} of {contest.plan.rounds}: {question.name}, {name}")
            time.sleep(SETTLE_SECONDS)
            with _attempt(contest, name) as process:
                _, seconds = _ask(process, question)
                kept = contest.standings[name].seconds.setdefault(question.name, {})
                for part, sample in seconds.items():
                    kept.setdefault(part, []).append(sample)


def _able(contest: Contest, question: BenchQuestion) -> list[str]:
    """Those who can answer: not everybody serves ragged requests."""
    return [name for name, process in contest.running.items() if question.name != REQUESTS or process.serves]


def _ask(process: PeerProcess, question: BenchQuestion) -> tuple[list[list[int]], dict[str, float]]:
    """The tokens of each row, and the seconds of each part, as a `Standing` has them."""
    if question.name == REQUESTS:
        served = process.serve(question.prompts, question.output_lens)
        return served.tokens, {"all": served.seconds}
    run = process.run(question.prompts, question.output_lens[0])
    return run.tokens, {"prefill": run.prefill_seconds, "decode": run.decode_seconds}


@contextmanager
def _attempt(contest: Contest, name: str) -> Iterator[PeerProcess]:
    """The process of a system; one that fails is out, with the reason in its standing."""
    try:
        yield contest.running[name]
    except PeerFailed as error:
        if name == OURS:
            raise
        contest.standings[name].failed = str(error)
        contest.running.pop(name).close()


def _environment(threads: int) -> dict[str, str]:
    """Of every system's process. They share a GPU: JAX would reserve three quarters of it for the first one."""
    preallocate = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": preallocate,
    }
