"""What is compared, what became of each system, and both as JSON with every sample. Imports no JAX."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from moejax.bench.peers import Settings
from moejax.bench.verdict import Verdict
from moejax.bench.works import RaggedRequest, Work

OURS = "moejax"
REQUESTS = "requests"  # the name of the ragged requests, beside the names of works
# A round of the requests takes longer than one of all else, so they are timed every third round.
ROUNDS_PER_REQUEST_ROUND = 3


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


@dataclass(kw_only=True)
class Standing:
    """One contender's results.

    warmup_seconds, verdicts: by the name of the work, and of the requests.  seconds: of every round, by the same names
    and by what was timed: prefill and decode, or all of the requests.  failed: why it could not go on, in one line.
    """

    name: str
    how: str = ""
    serve_how: str = ""
    load_seconds: float = 0.0
    warmup_seconds: dict[str, float] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failed: str | None = None

    @property
    def right(self) -> bool:
        """Whether no tokens of it were found wrong."""
        return all(verdict.right for verdict in self.verdicts.values())

    def finished(self, name: str, rounds: int) -> bool:
        """Whether it was timed in all of its rounds."""
        return any(len(samples) == rounds for samples in self.seconds.get(name, {}).values())


def work_name(work: Work) -> str:
    """The work in a few characters: b8 pp128 tg64."""
    return f"b{work.batch_size} pp{work.input_len} tg{work.output_len}"


def as_json(plan: SystemsPlan, standings: Sequence[Standing]) -> dict[str, Any]:
    """Every sample, and the ratios of each round: how many times faster than it ours was. Ours is the first."""
    return {
        "rounds": plan.rounds,
        "contenders": [
            {
                "name": one.name,
                "how": one.how,
                "serve_how": one.serve_how,
                "load_seconds": one.load_seconds,
                "warmup_seconds": sum(one.warmup_seconds.values()),
                "failed": one.failed,
            }
            for one in standings
        ],
        "works": [
            asdict(work)
            | {
                "name": work_name(work),
                "results": [
                    _result(work, one, standings[0]) for one in standings if one.finished(work_name(work), plan.rounds)
                ],
            }
            for work in plan.works
        ],
        "throughput": _throughput(plan, standings) if plan.requests else None,
    }


def _result(work: Work, standing: Standing, ours: Standing) -> dict[str, Any]:
    name = work_name(work)
    verdict, seconds = standing.verdicts[name], standing.seconds[name]
    counted = {"prefill": work.prefill_tokens, "decode": work.decode_tokens}
    return {
        "contender": standing.name,
        "tokens": verdict.judgement,
        "worst_gap": verdict.worst_gap,
        "mean_gap": verdict.mean_gap,
        "warmup_seconds": standing.warmup_seconds[name],
    } | {part: _samples(seconds[part], ours.seconds[name][part], tokens) for part, tokens in counted.items() if tokens}


def _throughput(plan: SystemsPlan, standings: Sequence[Standing]) -> dict[str, Any]:
    total = sum(request.output_len for request in plan.requests)
    return {
        "num_requests": len(plan.requests),
        "rounds": plan.request_rounds,
        "prompt_tokens": sum(len(request.prompt) for request in plan.requests),
        "output_tokens": total,
        "results": [
            {
                "contender": one.name,
                "how": one.serve_how,
                "tokens": one.verdicts[REQUESTS].judgement,
                **_samples(one.seconds[REQUESTS]["all"], standings[0].seconds[REQUESTS]["all"], total),
            }
            for one in standings
            if one.finished(REQUESTS, plan.request_rounds)
        ],
    }


def _samples(seconds: list[float], ours: list[float], tokens: int) -> dict[str, Any]:
    """Seconds and rates of every round; `ratios` is theirs over ours, above 1 where moejax was faster."""
    ratios = [their / our for our, their in zip(ours, seconds, strict=True)]
    return {
        "seconds": seconds,
        "tokens_per_second": [tokens / one for one in seconds],
        "median_tokens_per_second": tokens / statistics.median(seconds),
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
    }


class Measurement(NamedTuple):
    """One system's samples of one part of a comparison, as JSON has them.

    of: the work, or for the part `throughput` the requests.  tokens: the verdict on them.
    """

    part: Literal["prefill", "decode", "throughput"]
    of: Mapping[str, Any]
    contender: str
    tokens: str
    samples: Mapping[str, Any]


def measurements(compared: Mapping[str, Any]) -> Iterator[Measurement]:
    """Everything that was timed in a comparison, from its JSON: prefill and decoding of each work, then requests."""
    for work in compared["works"]:
        for part in ("prefill", "decode"):
            for one in work["results"]:
                if part in one:
                    yield Measurement(part, work, one["contender"], one["tokens"], one[part])
    if served := compared["throughput"]:
        for one in served["results"]:
            yield Measurement("throughput", served, one["contender"], one["tokens"], one)


def ratio_text(ratio: float) -> str:
    """A ratio with two decimals, or as many as show that it is below 1."""
    digits = 2
    while ratio < 1 <= float(f"{ratio:.{digits}f}"):
        digits += 1
    return f"{ratio:.{digits}f}"
