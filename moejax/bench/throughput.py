"""Times many ragged requests, given all at once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import moejax
from moejax.bench.latency import mean_and_spread
from moejax.bench.works import RaggedRequest


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Seconds of each round for all requests together, compilation apart."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    seconds: list[float]
    compile_seconds: float

    def as_json(self) -> dict[str, Any]:
        """In the keys of `vllm bench throughput`, of the mean round, and every sample."""
        elapsed, spread = mean_and_spread(self.seconds)
        total = self.prompt_tokens + self.output_tokens
        return {
            "elapsed_time": elapsed,
            "num_requests": self.requests,
            "total_num_tokens": total,
            "requests_per_second": self.requests / elapsed,
            "tokens_per_second": total / elapsed,
            "output_tokens_per_second": self.output_tokens / elapsed,
            "elapsed_times": self.seconds,
            "elapsed_stdev": spread,
            "compile_seconds": self.compile_seconds,
        }


def measure_throughput(
    model: moejax.Model,
    requests: Sequence[RaggedRequest],
    *,
    rounds: int,
    on_round: Callable[[str], None] = lambda text: None,
) -> Throughput:
    """Decodes all requests `rounds` times, after once to compile.

    Raises:
        ValueError: for requests that the model cannot serve.
    """
    compiled_before = model.programs.compile_seconds
    on_round(f"{len(requests)} requests: warm-up")
    outputs = run_requests(model, requests)
    compile_seconds = model.programs.compile_seconds - compiled_before
    seconds = []
    for round_ in range(rounds):
        on_round(f"{len(requests)} requests: round {round_ + 1} of {rounds}")
        began = time.perf_counter()
        run_requests(model, requests)
        seconds.append(time.perf_counter() - began)
    return Throughput(
        requests=len(requests),
        prompt_tokens=sum(len(request.prompt) for request in requests),
        output_tokens=sum(map(len, outputs)),
        seconds=seconds,
        compile_seconds=compile_seconds,
    )


def run_requests(model: moejax.Model, requests: Sequence[RaggedRequest]) -> list[list[int]]:
    """The output of every request."""
    results = moejax.decode(
        model,
        [request.prompt for request in requests],
        [moejax.SamplingParams(max_tokens=request.output_len, ignore_eos=True) for request in requests],
    )
    return [result.token_ids for result in results]
