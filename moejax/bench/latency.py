"""Times one batch at a time: compilation, prefill and decoding apart, beside what was counted."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moejax
from moejax._convert.memory import PeakMemory
from moejax.bench import counted
from moejax.bench.counted import Counted
from moejax.bench.roofline import Memory, Roofline
from moejax.bench.works import Work

PERCENTILES = (10, 25, 50, 75, 90, 99)


def measure_latency(
    model: moejax.Model,
    work: Work,
    roofline: Roofline,
    memory: Memory,
    *,
    warmup: int,
    rounds: int,
    on_round: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Times a piece of work `rounds` times, after `warmup` calls of it, and gives what is known of it as JSON.

    Every sample, in the keys of `vllm bench latency` where it has one. latencies: seconds of whole calls, as a user
    waits for them.  prefill, decode: to the first token, and all later ones; decode is None where one token was asked
    for.  compile_seconds: of the warm-up; in none of the others.  mbu, mfu: model bandwidth utilisation of decoding and
    model FLOP utilisation of the prefill, what they need per second over what the roofline measured; mbu of
    the rate of reading that was measured before and after each round, `read_rates`, the median of the rounds.
    peak_memory_bytes: of the device on an accelerator; what this process held, on a CPU.

    Raises:
        ValueError: for no round or no warm-up (the first call compiles), or work that is longer than the model takes.
    """
    check_rounds(warmup, rounds)
    prompts = work.prompts(model.config.vocab_size)
    with PeakMemory() as peak:
        compiled_before = model.programs.compile_seconds
        for _ in range(warmup):
            on_round("warm-up")
            _decode(model, prompts, work.output_len)
        samples, read_rates = [], [memory.read_rate()]
        for round_ in range(rounds):
            on_round(f"round {round_ + 1} of {rounds}")
            results = _decode(model, prompts, work.output_len)
            samples.append(max((one.stats for one in results), key=lambda stats: stats.ttft_seconds))
            read_rates.append(memory.read_rate())
    compile_seconds = model.programs.compile_seconds - compiled_before
    step, prompt_flops = count_work(model, work, prompts)
    latencies = [stats.ttft_seconds + stats.decode_seconds for stats in samples]
    prefill = _summary([stats.ttft_seconds for stats in samples], work.prefill_tokens)
    decode = mbu = None
    if work.decode_tokens:
        decode = _summary([stats.decode_seconds for stats in samples], work.decode_tokens)
        mbu = _share_of_reading(step.bytes * work.decode_tokens / work.batch_size, decode["seconds"], read_rates)
    prompts_per_second = prefill["tokens_per_second"] / work.prefill_tokens
    return {
        **asdict(work),
        "avg_latency": statistics.fmean(latencies),
        "latencies": latencies,
        "percentiles": percentiles(latencies),
        "prefill": prefill,
        "decode": decode,
        "compile_seconds": compile_seconds,
        "counted": {
            "how": "closed forms (moejax.bench.counted), experts as the router chose them",
            "decode_step": {**asdict(step), "bytes": step.bytes},
            "prefill_flops": prompt_flops,
        },
        "read_rates": read_rates,
        "mbu": mbu,
        "mfu": prompt_flops * prompts_per_second / roofline.matrix_flops_per_second,
        "peak_memory_bytes": device_peak_bytes() or peak.bytes,
    }


def _share_of_reading(nbytes: float, seconds: Sequence[float], read_rates: Sequence[float]) -> float:
    """What reading `nbytes` in so many seconds is of what the memory gave around each round: the median."""
    around = (statistics.fmean(pair) for pair in pairwise(read_rates))
    return statistics.median(nbytes / one / there for one, there in zip(seconds, around, strict=True))


def check_rounds(warmup: int, rounds: int) -> None:
    """Raises ValueError for numbers that measure nothing."""
    if warmup < 1:
        raise ValueError(f"--num-iters-warmup must be at least 1, since the first call compiles, got {warmup}")
    if rounds < 1:
        raise ValueError(f"--num-iters must be at least 1, got {rounds}")


def count_work(model: moejax.Model, work: Work, prompts: list[list[int]]) -> tuple[Counted, int]:
    """What a decode step of this work takes, and the FLOPs of its prefill; decodes once more to see the routing."""
    item_size = jnp.dtype(model.dtype).itemsize
    prompt_flops = counted.prefill_flops(model.config, [work.input_len] * work.batch_size)
    if work.output_len == 1:
        return counted.mean([]), prompt_flops
    results = _decode(model, prompts, work.output_len, return_routed_experts=True)
    routed = np.stack([_routed(result)[work.input_len :] for result in results])
    return counted.mean(counted.decode_steps(model.config, work.input_len, routed, item_size)), prompt_flops


def mean_and_spread(samples: Sequence[float]) -> tuple[float, float]:
    """The mean and the standard deviation (of a sample, 0 of a single one), as llama-bench gives them."""
    return statistics.fmean(samples), statistics.stdev(samples) if len(samples) > 1 else 0.0


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """The value below which each of `PERCENTILES` percent of the samples lie, interpolated, as `vllm bench` keys it."""
    return dict(zip(map(str, PERCENTILES), np.percentile(samples, PERCENTILES).tolist(), strict=True))


def device_peak_bytes() -> int | None:
    """The most memory that the fullest accelerator held; None on a CPU, where the process is asked."""
    stats = [device.memory_stats() for device in jax.local_devices() if device.platform != "cpu"]
    return max((one["peak_bytes_in_use"] for one in stats if one), default=None)


def _decode(model: moejax.Model, prompts: list[list[int]], output_len: int, **more: Any) -> list[moejax.DecodeResult]:
    return moejax.decode(model, prompts, max_tokens=output_len, ignore_eos=True, **more)


def _routed(result: moejax.DecodeResult) -> np.ndarray:
    routed = result.routed_experts
    assert routed is not None, "routed experts were asked for"
    return routed


def _summary(seconds: list[float], tokens: int) -> dict[str, Any]:
    """Of one part of the work, in which so many tokens are read or generated."""
    mean, spread = mean_and_spread([tokens / one for one in seconds])
    return {"seconds": seconds, "percentiles": percentiles(seconds), "tokens_per_second": mean, "stdev": spread}
