"""What became of each system in a comparison, and the same as JSON with every sample. Imports no JAX."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from moejax.bench.samples import percentiles, ratios
from moejax.bench.verdict import Verdict
from moejax.bench.works import RaggedRequest, Work

REQUESTS = "requests"  # what the verdict on the ragged requests is kept under, beside the names of works


@dataclass(kw_only=True)
class Standing:
    """One contender's results.

    warmup_seconds, verdicts: by the name of the work, and of the requests.  prefill, decode: seconds of every round, by
    work.  serve: of the requests.  failed: why it could not go on, in one line.
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

    @property
    def right(self) -> bool:
        """Whether no tokens of it were found wrong."""
        return all(verdict.right for verdict in self.verdicts.values())


def work_name(work: Work) -> str:
    """The work in a few characters: b8 pp128 tg64."""
    return f"b{work.batch_size} pp{work.input_len} tg{work.output_len}"


def standings_json(
    standings: Sequence[Standing],
    works: Sequence[Work],
    requests: Sequence[RaggedRequest],
    rounds: int,
    request_rounds: int,
) -> dict[str, Any]:
    """Every sample, and the ratios of each round: how many times faster than it ours was. Ours is the first."""
    ours = standings[0]
    return {
        "rounds": rounds,
        "contenders": [
            {
                "name": s.name,
                "how": s.how,
                "serve_how": s.serve_how,
                "load_seconds": s.load_seconds,
                "warmup_seconds": sum(s.warmup_seconds.values()),
                "failed": s.failed,
            }
            for s in standings
        ],
        "works": [
            asdict(work)
            | {
                "name": work_name(work),
                "results": [
                    _result(ours, s, work) for s in standings if len(s.prefill.get(work_name(work), [])) == rounds
                ],
            }
            for work in works
        ],
        "throughput": _throughput(standings, requests, request_rounds) if requests else None,
    }


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


def _throughput(standings: Sequence[Standing], requests: Sequence[RaggedRequest], rounds: int) -> dict[str, Any]:
    total = sum(request.output_len for request in requests)
    return {
        "num_requests": len(requests),
        "rounds": rounds,
        "prompt_tokens": sum(len(request.prompt) for request in requests),
        "output_tokens": total,
        "results": [
            {
                "contender": s.name,
                "how": s.serve_how,
                "tokens": s.verdicts[REQUESTS].judgement,
                **_samples(s.serve, standings[0].serve, total),
            }
            for s in standings
            if s.serve and len(s.serve) == rounds
        ],
    }
