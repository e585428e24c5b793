"""Times one batch at a time: compilation, prefill and decoding apart, beside what was counted."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moejax
from convert.memory import PeakMemory
from moejax.bench import counted
from moejax.bench.counted import Counted
from moejax.bench.roofline import Roofline
from moejax.bench.works import Work

PERCENTILES = (10, 25, 50, 75, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """What one piece of work took, every round of it, in seconds.

    latencies: whole calls, as a user waits for them.  prefill, decode: to the first token, and all later ones.
    compile_seconds: of the warm-up; in none of the others.
    step: what a decode step reads and computes, the mean over the steps.  prompt_flops: of the prefill.
    peak_memory_bytes: of the device on an accelerator; what this process held, on a CPU.
    """

    work: Work
    latencies: list[float]
    prefill: list[float]
    decode: list[float]
    compile_seconds: float
    step: Counted
    prompt_flops: int
    peak_memory_bytes: int
    roofline: Roofline

    @property
    def prefill_rates(self) -> list[float]:
        """Prompt tokens per second of each round."""
        return [self.work.prefill_tokens / seconds for seconds in self.prefill]

    @property
    def decode_rates(self) -> list[float]:
        """Generated tokens per second of each round; none when only one token was asked for."""
        return [self.work.decode_tokens / seconds for seconds in self.decode if self.work.decode_tokens]

    @property
    def mbu(self) -> float | None:
        """Model bandwidth utilisation of decoding: bytes a step must read per second, over the measured bandwidth."""
        if not self.work.decode_tokens:
            return None
        steps_per_second = mean_and_spread(self.decode_rates)[0] / self.work.batch_size
        return self.step.bytes * steps_per_second / self.roofline.bandwidth

    @property
    def mfu(self) -> float:
        """Model FLOP utilisation of the prefill: FLOPs it needs per second, over the measured matrix rate."""
        rate = mean_and_spread(self.prefill_rates)[0] / self.work.prefill_tokens
        return self.prompt_flops * rate / self.roofline.matrix_flops_per_second

    def as_json(self) -> dict[str, Any]:
        """Every sample, in the keys of `vllm bench latency` where it has one."""
        return {
            **asdict(self.work),
            "avg_latency": mean_and_spread(self.latencies)[0],
            "latencies": self.latencies,
            "percentiles": percentiles(self.latencies),
            "prefill": _summary(self.prefill, self.prefill_rates),
            "decode": _summary(self.decode, self.decode_rates) if self.work.decode_tokens else None,
            "compile_seconds": self.compile_seconds,
            "counted": {
                "how": "closed forms (moejax.bench.counted), experts as the router chose them",
                "decode_step": {**asdict(self.step), "bytes": self.step.bytes},
                "prefill_flops": self.prompt_flops,
            },
            "mbu": self.mbu,
            "mfu": self.mfu,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def measure_latency(
    model: moejax.Model,
    works: Sequence[Work],
    roofline: Roofline,
    *,
    warmup: int,
    rounds: int,
    on_round: Callable[[str], None] = lambda text: None,
) -> Iterator[Latency]:
    """Times every piece of work `rounds` times, after `warmup` calls of it.

    Raises:
        ValueError: for no round or no warm-up (the first call compiles), or work that is longer than the model takes.
    """
    check_rounds(warmup, rounds)
    for work in works:
        prompts = work.prompts(model.config.vocab_size)
        with PeakMemory() as peak:
            compiled_before = model.programs.compile_seconds
            for _ in range(warmup):
                on_round(f"{work.prefill_name} {work.decode_name} b{work.batch_size}: warm-up")
                _decode(model, prompts, work.output_len)
            samples = []
            for round_ in range(rounds):
                on_round(f"{work.prefill_name} {work.decode_name} b{work.batch_size}: round {round_ + 1} of {rounds}")
                results = _decode(model, prompts, work.output_len)
                samples.append(max((one.stats for one in results), key=lambda stats: stats.ttft_seconds))
        compile_seconds = model.programs.compile_seconds - compiled_before
        step, prompt_flops = count_work(model, work, prompts)
        yield Latency(
            work=work,
            latencies=[stats.ttft_seconds + stats.decode_seconds for stats in samples],
            prefill=[stats.ttft_seconds for stats in samples],
            decode=[stats.decode_seconds for stats in samples],
            compile_seconds=compile_seconds,
            step=step,
            prompt_flops=prompt_flops,
            peak_memory_bytes=device_peak_bytes() or peak.bytes,
            roofline=roofline,
        )


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


def _summary(seconds: list[float], rates: list[float]) -> dict[str, Any]:
    mean, spread = mean_and_spread(rates)
    return {"seconds": seconds, "percentiles": percentiles(seconds), "tokens_per_second": mean, "stdev": spread}
