"""What a load has shown, as a table and as JSON with the keys of `vllm bench serve`."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moejax.bench.serving_load import Load
from moejax.bench.serving_request import Outcome

if TYPE_CHECKING:  # imported where a table is made
    from rich.table import Table

LATENCIES = {
    "ttft": "time to first token",
    "tpot": "time per output token after it",
    "itl": "inter-token latency",
    "e2el": "end to end",
}


def summarize(load: Load, outcomes: Sequence[Outcome], duration: float) -> dict[str, Any]:
    """Counts, throughput per second of `duration`, and latencies in milliseconds; None where nothing was measured."""
    good = [one for one in outcomes if one.error is None]
    output_tokens = sum(one.output_tokens for one in good)
    input_tokens = sum(one.input_tokens for one in good)
    return {
        "model_id": load.model,
        "base_url": load.base_url,
        "num_prompts": load.num_prompts,
        "request_rate": load.request_rate if math.isfinite(load.request_rate) else "inf",
        "max_concurrency": load.max_concurrency,
        "duration": duration,
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": len(good) / duration,
        "output_throughput": output_tokens / duration,
        "total_token_throughput": (input_tokens + output_tokens) / duration,
        "max_concurrent_requests": _most_at_once(good),
        **_statistics("ttft", [one.ttft for one in good]),
        **_statistics("tpot", [one.tpot for one in good if one.tpot is not None]),
        **_statistics("itl", [gap for one in good for gap in one.itls]),
        **_statistics("e2el", [one.latency for one in good]),
        "input_lens": [one.input_tokens for one in outcomes],
        "output_lens": [one.output_tokens for one in outcomes],
        "ttfts": [one.ttft for one in outcomes],
        "itls": [one.itls for one in outcomes],
        "errors": [one.error or "" for one in outcomes],
    }


def _statistics(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    keys = [f"{statistic}_{name}_ms" for statistic in ("mean", "median", "std", "p99")]
    if not seconds:
        return dict.fromkeys(keys)
    values: Any = np.array(seconds) * 1000
    measured = (values.mean(), np.median(values), values.std(), np.percentile(values, 99))
    return {key: float(value) for key, value in zip(keys, measured, strict=True)}


def _most_at_once(outcomes: Sequence[Outcome]) -> int:
    changes = [(one.sent, 1) for one in outcomes] + [(one.sent + one.latency, -1) for one in outcomes]
    most = running = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


def counts_line(summary: dict[str, Any]) -> str:
    """Requests, tokens and throughput in two lines."""
    failed = f", {summary['failed']} failed" if summary["failed"] else ""
    return (
        f"{summary['completed']} requests completed{failed} in {summary['duration']:.2f} s, "
        f"at most {summary['max_concurrent_requests']} at once: {summary['request_throughput']:.2f} requests/s\n"
        f"{summary['total_input_tokens']:,} tokens in, {summary['total_output_tokens']:,} out: "
        f"{summary['output_throughput']:,.1f} output tokens/s, {summary['total_token_throughput']:,.1f} in all"
    )


def latency_table(summary: dict[str, Any]) -> "Table":
    """One row per latency: mean, median, 99th percentile."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("milliseconds")
    for heading in ("", "mean", "median", "p99"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, words in LATENCIES.items():
        values = (summary[f"{statistic}_{name}_ms"] for statistic in ("mean", "median", "p99"))
        shown = ("-" if value is None else f"{value:,.2f}" for value in values)
        table.add_row(name.upper(), words, *shown)
    return table


def error_lines(outcomes: Sequence[Outcome], most: int = 5) -> list[str]:
    """The different errors, the most frequent first, with how often each came."""
    errors = Counter(one.error for one in outcomes if one.error is not None)
    lines = [f"{count} x {error}" for error, count in errors.most_common(most)]
    others = len(errors) - len(lines)
    return lines + ([f"and {others} other errors"] if others else [])
