"""Times many ragged requests, given all at once."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import moejax
from moejax.bench.latency import mean_and_spread
from moejax.bench.works import RaggedRequest


def measure_throughput(
    model: moejax.Model,
    requests: Sequence[RaggedRequest],
    *,
    rounds: int,
    on_round: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Decodes all requests `rounds` times, after once to compile; gives what is known of it as JSON.

    In the keys of `vllm bench throughput`, of the mean round, and the seconds of every round, compilation apart.

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
    elapsed, spread = mean_and_spread(seconds)
    output_tokens = sum(map(len, outputs))
    total = sum(len(request.prompt) for request in requests) + output_tokens
    return {
        "elapsed_time": elapsed,
        "num_requests": len(requests),
        "total_num_tokens": total,
        "requests_per_second": len(requests) / elapsed,
        "tokens_per_second": total / elapsed,
        "output_tokens_per_second": output_tokens / elapsed,
        "elapsed_times": seconds,
        "elapsed_stdev": spread,
        "compile_seconds": compile_seconds,
    }


def run_requests(model: moejax.Model, requests: Sequence[RaggedRequest]) -> list[list[int]]:
    """The output of every request."""
    results = moejax.decode(
        model,
        [request.prompt for request in requests],
        [moejax.SamplingParams(max_tokens=request.output_len, ignore_eos=True) for request in requests],
    )
    return [result.token_ids for result in results]
