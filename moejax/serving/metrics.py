"""What `/metrics` shows, under the names that vLLM's dashboards ask for. Written by the engine's thread."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from moejax.serving.jobs import ServedRequest

# Bounds of the buckets in seconds, and in tokens.
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_PER_TOKEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
_REQUEST = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 240.0, 480.0, 960.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class _Renamed(Collector):
    """A metric once more, under the name that older dashboards ask for; counted only once."""

    def __init__(self, metric: Collector, name: str, before: str) -> None:
        self._metric, self._name, self._before = metric, name, before

    def collect(self) -> Iterator[Metric]:
        for metric in self._metric.collect():
            old = Metric(self._before, f"The former name of {self._name}.", metric.type)
            old.samples = [one._replace(name=one.name.replace(self._name, self._before)) for one in metric.samples]
            yield old


class Metrics:
    """One server's metrics, in a registry of its own. `labels` (model_name, engine) are those of vLLM."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"model_name": model_name, "engine": "0"}

        def made(kind: Callable[..., Any], name: str, text: str, *, before: str = "", **settings: Any) -> Any:
            """A metric with its labels; `before`: what vLLM called it earlier."""
            metric = kind(name, text, list(self._labels), registry=self.registry, **settings)
            if before:
                self.registry.register(_Renamed(metric, name, before))
            return metric.labels(**self._labels)

        self.running = made(Gauge, "vllm:num_requests_running", "Requests that have slots.")
        self.waiting = made(Gauge, "vllm:num_requests_waiting", "Requests in the queue.")
        self.cache_use = made(
            Gauge,
            "vllm:kv_cache_usage_perc",
            "Used part of the key/value cache, 0 to 1.",
            before="vllm:gpu_cache_usage_perc",
        )
        self.prompt_tokens = made(Counter, "vllm:prompt_tokens", "Tokens of prompts that were fed.")
        self.generation_tokens = made(Counter, "vllm:generation_tokens", "Tokens generated.")
        self.ttft = made(Histogram, "vllm:time_to_first_token_seconds", "From arrival.", buckets=_FIRST_TOKEN)
        self.itl = made(
            Histogram,
            "vllm:inter_token_latency_seconds",
            "Seconds per token after the first; of tokens that came together, their mean.",
            before="vllm:time_per_output_token_seconds",
            buckets=_PER_TOKEN,
        )
        self.tpot = made(
            Histogram, "vllm:request_time_per_output_token_seconds", "A request's mean.", buckets=_PER_TOKEN
        )
        self.latency = made(Histogram, "vllm:e2e_request_latency_seconds", "Whole requests.", buckets=_REQUEST)
        self.queue_time = made(Histogram, "vllm:request_queue_time_seconds", "Before it had slots.", buckets=_REQUEST)
        self.prefill_time = made(
            Histogram, "vllm:request_prefill_time_seconds", "From its slots to the first token.", buckets=_REQUEST
        )
        self.decode_time = made(
            Histogram, "vllm:request_decode_time_seconds", "From the first token to the last.", buckets=_REQUEST
        )
        self.inference_time = made(
            Histogram, "vllm:request_inference_time_seconds", "From its slots to the last token.", buckets=_REQUEST
        )
        self.prompt_length = made(Histogram, "vllm:request_prompt_tokens", "Tokens of prompts.", buckets=_TOKENS)
        self.output_length = made(Histogram, "vllm:request_generation_tokens", "Tokens generated.", buckets=_TOKENS)
        self.longest_output = made(
            Histogram, "vllm:request_max_num_generation_tokens", "Tokens of the longest output.", buckets=_TOKENS
        )
        self._success = Counter(
            "vllm:request_success",
            "Finished requests.",
            [*self._labels, "finished_reason"],
            registry=self.registry,
        )
        for reason in ("stop", "length", "abort"):  # they are there before the first request ends
            self._success.labels(**self._labels, finished_reason=reason)
        self.refused = Counter(
            "moejax:requests_refused",
            "Requests that the full queue refused.",
            list(self._labels),
            registry=self.registry,
        ).labels(**self._labels)
        self.stalled_clients = Counter(
            "moejax:stalled_clients",
            "Connections that were ended because their client read nothing.",
            list(self._labels),
            registry=self.registry,
        ).labels(**self._labels)
        self._expert_rows = Counter(
            "moejax:expert_rows",
            "Rows (token and expert) that each expert of each layer computed.",
            [*self._labels, "layer", "expert"],
            registry=self.registry,
        )
        self._by_expert: list[list[Any]] = []

    def finish(self, job: ServedRequest, reason: str) -> None:
        """Counts a request that ended: "stop", "length" or "abort"."""
        self._success.labels(**self._labels, finished_reason=reason).inc()
        if reason == "abort" or job.started is None or job.first_token is None or job.last_token is None:
            return
        self.latency.observe(job.last_token - job.arrived)
        self.queue_time.observe(job.started - job.arrived)
        self.prefill_time.observe(job.first_token - job.started)
        self.decode_time.observe(job.last_token - job.first_token)
        self.inference_time.observe(job.last_token - job.started)
        self.prompt_length.observe(len(job.request.prompt))
        self.output_length.observe(job.generated)
        longest = max(len(one.tokens) for one in job.sequences)
        self.longest_output.observe(longest)
        if longest > 1:
            self.tpot.observe((job.last_token - job.first_token) / (longest - 1))

    def observe_tokens(self, count: int, seconds: float) -> None:
        """Counts the time of `count` tokens that came together, `seconds` after the one before them."""
        for _ in range(count):
            self.itl.observe(seconds / count)

    def now_running(self) -> int:
        """How many requests have slots."""
        return int(self._value("vllm:num_requests_running"))

    def ended(self) -> tuple[int, int]:
        """How many requests were finished, and how many given up or cancelled, so far."""
        finished = sum(self._value("vllm:request_success_total", finished_reason=one) for one in ("stop", "length"))
        return int(finished), int(self._value("vllm:request_success_total", finished_reason="abort"))

    def _value(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, {**self._labels, **labels})
        assert value is not None, name
        return value

    def add_expert_rows(self, rows: np.ndarray) -> None:
        """Adds rows [d, L, E] that experts computed."""
        by_layer = rows.sum(axis=0).tolist()
        if not self._by_expert:
            self._by_expert = [
                [self._expert_rows.labels(**self._labels, layer=layer, expert=expert) for expert in range(len(counts))]
                for layer, counts in enumerate(by_layer)
            ]
        for counters, counts in zip(self._by_expert, by_layer, strict=True):
            for counter, count in zip(counters, counts, strict=True):
                counter.inc(count)

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self.registry)
